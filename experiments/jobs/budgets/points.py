"""What a talker said at one point of one training, and the rule by which one point is chosen for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_modules.errors import UserError
from lightning_modules.evaluation.bootstrap import Estimate, estimate_difference, estimate_rate

RULE = (
    "of all trials and kept steps, the one with the fewest word errors of the talker's first decoding on the "
    "validation dialogues; of equal ones that of fewer steps, then of the smaller rate"
)


@dataclass(frozen=True)
class Point:
    """One decoding of one talker, with the weights of one step of one trial.

    Attributes:
        trial: Name of the trial's run directory.
        talker: Name.
        decoding: Name.
        learning_rate: Peak rate of the talker in this trial.
        step: Optimizer steps.
        flops: Floating point operations of the talker's training up to there.
        errors: Word errors of each validation dialogue.
        words: Words of each.
    """

    trial: str
    talker: str
    decoding: str
    learning_rate: float
    step: int
    flops: float
    errors: tuple[int, ...]
    words: tuple[int, ...]

    @property
    def wer(self) -> Estimate:
        """Word error rate with its interval over dialogues."""
        return estimate_rate(np.array(self.errors), np.array(self.words))

    def minus(self, other: "Point") -> Estimate:
        """Word error rate minus that of another point on the same dialogues, with its paired interval."""
        return estimate_difference(*map(np.array, (other.errors, other.words, self.errors, self.words)))


def by_trial(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Sort points into their trials, by learning rate and then by length, those of a trial by step."""
    trials: dict[str, list[Point]] = {}
    for one in sorted(points, key=lambda one: one.step):
        trials.setdefault(one.trial, []).append(one)
    return dict(sorted(trials.items(), key=lambda item: (item[1][0].learning_rate, item[1][-1].step, item[0])))


def choose(points: Sequence[Point], deciding: Mapping[str, str]) -> dict[str, Point]:
    """Choose trial and step of each talker by :data:`RULE`.

    Args:
        points: Of all trials.
        deciding: The decoding that decides, by talker.

    Returns:
        The point of the deciding decoding, by talker.

    Raises:
        UserError: If a talker has no point.
    """
    chosen = {}
    for talker, decoding in deciding.items():
        own = [one for one in points if (one.talker, one.decoding) == (talker, decoding)]
        if not own:
            raise UserError(f"{talker} was not judged under {decoding}; let the trials keep weights")
        chosen[talker] = min(own, key=lambda one: (sum(one.errors), one.step, one.learning_rate))
    return chosen


def edges_of(points: Sequence[Point], chosen: Point) -> list[str]:
    """Name the ends of the tried rates and steps at which a choice lies: better ones may lie beyond.

    Returns:
        Some of "smallest rate", "largest rate", and "last step", of which there is none behind it in any trial.
    """
    own = [one for one in points if one.talker == chosen.talker]
    rates = {one.learning_rate for one in own}
    last = max(one.step for one in own)
    ends = {
        "smallest rate": len(rates) > 1 and chosen.learning_rate == min(rates),
        "largest rate": len(rates) > 1 and chosen.learning_rate == max(rates),
        "last step": chosen.step == last,
    }
    return [name for name, is_there in ends.items() if is_there]
