"""Trained talkers that speak real texts, one decoding under one execution each, and their figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from experiments.jobs.decoding.executions import Runner
from experiments.jobs.decoding.replies import Reply, time_reply
from experiments.jobs.decoding.report.figures import speed_ratios
from experiments.jobs.decoding.statistics import count_equal, spread_of
from experiments.jobs.decoding.trained.written_texts import WrittenText
from lightning_modules.adapters.adapter_set import AdapterSet
from lightning_modules.errors import UserError


@dataclass
class SpokenCase:
    """One decoding of a comparison under one execution.

    Attributes:
        decoding: Name of the decoding.
        execution: Name of the execution.
        runner: Speaks a text.
        adapter: LoRA adapter under which it speaks; None is the base.
        setup_s: Seconds until it was prepared: compilation, capture, packed weights.
        replies: What it said, query by query.
    """

    decoding: str
    execution: str
    runner: Runner
    adapter: str | None = None
    setup_s: float = 0.0
    replies: list[Reply] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name in JSON."""
        return f"{self.decoding}, {self.execution}"

    def speak(self, text: WrittenText, adapters: AdapterSet, device: torch.device, clock: str) -> Reply:
        """Speak a text, and time it; its states are there as a whole.

        Args:
            text: What the thinker wrote.
            adapters: Those of the comparison.
            device: Where the talker is.
            clock: By which it is timed.
        """
        adapters.select(self.adapter)
        return time_reply(lambda: self.runner(text.states[self.adapter]), device, clock)


def drop_silent(cases: Sequence[SpokenCase]) -> int:
    """Leave out the queries to which a case said nothing, from all cases, so that pairs stay pairs.

    Returns:
        How many.

    Raises:
        UserError: If none is left.
    """
    pairs = list(zip(*(case.replies for case in cases), strict=True))
    heard = [replies for replies in pairs if all(reply.tokens for reply in replies)]
    if not heard:
        raise UserError("some talker ends each reply before it has said a token: there is no speed; train it longer")
    for case, replies in zip(cases, zip(*heard, strict=True), strict=True):
        case.replies = list(replies)
    return len(pairs) - len(heard)


def figures_of_case(
    case: SpokenCase, cases: Mapping[tuple[str, str], SpokenCase], reference: str, baseline: str
) -> dict[str, Any]:
    """Give all figures of one case.

    Args:
        case: What was measured.
        cases: All cases by decoding and execution.
        reference: The execution that others are held against.
        baseline: The decoding that others are held against.

    Returns:
        Spreads over queries as median, 10th and 90th percentile; ratios as median and the ends of a 95 % interval; how
        many tokens are those of the reference, place by place, out of those of the longer reply.
    """
    others = {
        "against_reference": (case.decoding, reference),
        "against_baseline": (baseline, case.execution),
    }
    its = cases.get((case.decoding, reference))
    pairs = [] if its is None else [(a.tokens, b.tokens) for a, b in zip(case.replies, its.replies, strict=True)]
    return {
        "decoding": case.decoding,
        "execution": case.execution,
        "passes_per_block": sum(one.num_passes for one in case.replies) / sum(one.num_blocks for one in case.replies),
        "tokens_per_s": spread_of([one.tokens_per_s for one in case.replies]),
        **speed_ratios(case, cases, others),
        "num_equal_tokens": sum(count_equal(*pair) for pair in pairs) if pairs else None,
        "num_compared_tokens": sum(max(map(len, pair)) for pair in pairs) if pairs else None,
        "setup_s": case.setup_s,
        "seconds": [one.seconds for one in case.replies],
        "num_tokens": [len(one.tokens) for one in case.replies],
    }
