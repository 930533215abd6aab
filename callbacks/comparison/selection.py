"""Which dialogues of a test people listen to: the worst ones, and beside them some drawn at random."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class _Candidate(Generic[Kept]):
    name: str
    badness: float
    kept: Kept

    @property
    def random_key(self) -> bytes:
        """Draw by name, so that a test chooses the same dialogues again, on any number of devices."""
        return hashlib.sha256(self.name.encode("utf-8", "backslashreplace")).digest()

    @property
    def worst_key(self) -> tuple[float, bytes]:
        return -self.badness, self.random_key


@dataclass
class Selection(Generic[Kept]):
    """Keeps a few of many dialogues while they pass; the others are let go, so that memory does not grow.

    Attributes:
        num_random: Dialogues that are drawn at random.
        num_worst: Dialogues that are the worst; they may be among the former.
    """

    num_random: int
    num_worst: int
    _candidates: dict[str, _Candidate[Kept]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget all dialogues."""
        self._candidates.clear()

    def offer(self, name: str, badness: float, kept: Kept) -> None:
        """Show a dialogue.

        Args:
            name: Of the dialogue; one that was shown before under this name is kept as it was.
            badness: The larger, the worse.
            kept: What is kept of it.
        """
        self._candidates.setdefault(name, _Candidate(name, badness, kept))
        self._prune()

    def merge(self, others: Sequence["Selection[Kept]"]) -> None:
        """Choose among what several devices have kept."""
        for other in others:
            for candidate in other._candidates.values():
                self._candidates.setdefault(candidate.name, candidate)
        self._prune()

    def worst(self) -> list[Kept]:
        """Give the worst dialogues, the worst first."""
        return [one.kept for one in sorted(self._candidates.values(), key=lambda one: one.worst_key)[: self.num_worst]]

    def at_random(self) -> list[Kept]:
        """Give those drawn at random, in the order of their names."""
        return [one.kept for one in sorted(self._drawn(), key=lambda one: one.name)]

    def _drawn(self) -> list[_Candidate[Kept]]:
        return sorted(self._candidates.values(), key=lambda one: one.random_key)[: self.num_random]

    def _prune(self) -> None:
        worst = sorted(self._candidates.values(), key=lambda one: one.worst_key)[: self.num_worst]
        self._candidates = {one.name: one for one in (*worst, *self._drawn())}
