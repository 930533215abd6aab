"""What is measured in the time that a benchmark may take: which rows, how many rounds, of how many blocks."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lightning_modules.errors import UserError

_T = TypeVar("_T")
MIN_BLOCKS = 3  # the second one is what is counted, and something follows it
MAX_NAMED = 4


@dataclass(frozen=True)
class Plan:
    """Rounds that are measured.

    Attributes:
        num_rounds: Rounds, each with one reply of each case.
        num_blocks: Blocks of a reply.
        round_s: Seconds that a round is expected to take.
    """

    num_rounds: int
    num_blocks: int
    round_s: float

    def __str__(self) -> str:
        """Give them in words."""
        return f"{self.num_rounds} rounds of {self.num_blocks} blocks, about {self.round_s:.1f} s each,"


@dataclass(frozen=True)
class TimeBudget:
    """The time that a benchmark may take, its warm-up included.

    Attributes:
        max_minutes: All of it.
        num_rounds: Rounds at most.
        min_rounds: Rounds at least: an interval of fewer says nothing.
        num_blocks: Blocks of a reply at most.
        min_blocks: Blocks of a reply at least.
        start_s: When it began, by :func:`time.perf_counter`.
    """

    max_minutes: float
    num_rounds: int
    min_rounds: int
    num_blocks: int
    min_blocks: int
    start_s: float

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return 60 * self.max_minutes - (time.perf_counter() - self.start_s)

    def plan(self, block_s: Mapping[str, float], reserved_s: float = 0.0) -> Plan:
        """Plan the rounds that fit: as many as asked for, else fewer, else shorter ones, as few as there must be.

        Args:
            block_s: Seconds of a block of each case, as its warm-up took.
            reserved_s: Seconds that are left for what comes behind the rounds.

        Returns:
            The plan.

        Raises:
            UserError: If not even the least fits; it says what would.
        """
        all_s, left_s = sum(block_s.values()), self.left_s - reserved_s
        for num_blocks in range(self.num_blocks, self.min_blocks - 1, -1):
            num_rounds = int(min(self.num_rounds, left_s / (num_blocks * all_s)))
            if num_rounds >= self.min_rounds:
                return Plan(num_rounds, num_blocks, num_blocks * all_s)
        round_s = self.min_blocks * all_s
        needed = self.max_minutes + (self.min_rounds * round_s - left_s) / 60
        slowest = sorted(block_s, key=lambda name: -block_s[name])[:MAX_NAMED]
        named = "; ".join(f"{name} {self.min_blocks * block_s[name]:.1f} s" for name in slowest)
        raise UserError(
            f"max_minutes is {self.max_minutes:g}, of which {max(0.0, left_s):.0f} s are left, too few for "
            f"{self.min_rounds} rounds of {len(block_s)} rows, {round_s:.0f} s each with replies of {self.min_blocks} "
            f"blocks; give max_minutes={needed + 1:.0f} or more, or select rows by only_decodings=[ntp,mdm_4] or "
            f"only_executions=[stepwise,static]; the slowest rows: {named}"
        )

    def has_time_for(self, num_done: int, longest_s: float, reserved_s: float = 0.0) -> bool:
        """Tell whether another round fits, on a machine that may have become slower since the plan was made.

        Args:
            num_done: Rounds so far.
            longest_s: Seconds of the longest one.
            reserved_s: As of :meth:`plan`.
        """
        return num_done < self.min_rounds or longest_s <= self.left_s - reserved_s


def select(what: str, given: Mapping[str, _T | None], only: Sequence[str] | None) -> dict[str, _T]:
    """Leave out what is None, and what is not among the names that are asked for.

    Raises:
        UserError: If a name is unknown.
    """
    there = {name: one for name, one in given.items() if one is not None}
    unknown = [name for name in only or () if name not in there]
    if unknown:
        raise UserError(f"only_{what}: {unknown[0]!r} is none of the {what}; name some of {list(there)}")
    return {name: one for name, one in there.items() if only is None or name in only}
