"""Levels of masking over the course of training, as a pure function of progress."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_modules.errors import UserError
from lightning_modules.talker.masking.schemes import (
    BlockBernoulli,
    GlobalBernoulli,
    HierarchicalBlockwise,
    Masking,
    check_ratio_range,
)

SCHEMES = ("global", "block", "hierarchical")
SHAPES = ("linear", "cosine", "piecewise")

Range = tuple[float, float]


@dataclass(frozen=True)
class MaskingLevels:
    """A masking scheme and its ranges.

    Attributes:
        scheme: "global" (a ratio per sequence), "block" (a ratio per block) or "hierarchical" (a share of the blocks,
            each with a ratio).
        token_ratio: Smallest and largest share of positions.
        block_ratio: Smallest and largest share of blocks; of use to the hierarchical scheme only.
    """

    scheme: str
    token_ratio: Range
    block_ratio: Range = (1.0, 1.0)

    def build(self) -> Masking:
        """Make the object that draws masks at these levels."""
        if self.scheme == "global":
            return GlobalBernoulli(*self.token_ratio)
        if self.scheme == "block":
            return BlockBernoulli(*self.token_ratio)
        return HierarchicalBlockwise(self.block_ratio, self.token_ratio)

    def as_scalars(self) -> dict[str, float]:
        """Scalars to log; the scheme by its place in :data:`SCHEMES`."""
        named = {"token_ratio": self.token_ratio, "block_ratio": self.block_ratio}
        bounds = {
            f"masking/{name}_{end}": pair[i] for name, pair in named.items() for i, end in enumerate(("low", "high"))
        }
        return {"masking/scheme": float(SCHEMES.index(self.scheme)), **bounds}


class MaskingSchedule:
    """Levels at given places of training, and what lies between them.

    Between two places of one scheme the ranges move (linearly, along half a cosine, or not at all until the later
    place); where the scheme changes, the earlier levels hold until the later place.

    Args:
        levels: The places, each a mapping of ``at``, ``scheme``, ``token_ratio`` and, for the hierarchical scheme,
            ``block_ratio``; the first at 0.
        shape: "linear", "cosine" or "piecewise".

    Raises:
        UserError: If the schedule is impossible: it says which level, what is wrong and how to fix it.
    """

    def __init__(self, levels: Sequence[Mapping[str, Any]], shape: str = "linear") -> None:
        if shape not in SHAPES:
            raise UserError(f"masking schedule: there is no shape {shape!r}; choose one of {', '.join(SHAPES)}")
        if not levels:
            raise UserError("masking schedule: it has no levels; give at least one, at 0")
        self.shape = shape
        self.levels = [
            read_levels(f"masking schedule: levels[{index}]", level, frozenset({"at"}))
            for index, level in enumerate(levels)
        ]
        self.places = [_read_place(index, level) for index, level in enumerate(levels)]
        if self.places[0] != 0:
            raise UserError(f"masking schedule: levels[0] is at {self.places[0]:g}; start at 0")
        for index, (earlier, later) in enumerate(zip(self.places, self.places[1:], strict=False), start=1):
            if later <= earlier:
                raise UserError(
                    f"masking schedule: levels[{index}] is at {later:g}, not behind {earlier:g}; list them in order"
                )

    def __call__(self, place: float) -> MaskingLevels:
        """Give the levels at a place, in the unit of the places, 0 or later; the last ones hold on."""
        index = bisect.bisect_right(self.places, place) - 1
        current = self.levels[index]
        if index + 1 == len(self.levels) or self.shape == "piecewise":
            return current
        following = self.levels[index + 1]
        if following.scheme != current.scheme:
            return current
        share = (place - self.places[index]) / (self.places[index + 1] - self.places[index])
        if self.shape == "cosine":
            share = 0.5 - 0.5 * math.cos(math.pi * share)
        return MaskingLevels(
            current.scheme,
            _between(current.token_ratio, following.token_ratio, share),
            _between(current.block_ratio, following.block_ratio, share),
        )


def _between(first: Range, second: Range, share: float) -> Range:
    low, high = ((1 - share) * a + share * b for a, b in zip(first, second, strict=True))
    return low, high


def read_levels(where: str, level: Mapping[str, Any], other_keys: frozenset[str] = frozenset()) -> MaskingLevels:
    """Check what a user wrote.

    Args:
        where: What it is part of, for errors.
        level: ``scheme``, ``token_ratio`` and, for the hierarchical scheme, ``block_ratio``.
        other_keys: Keys that it has to have beside these.

    Raises:
        UserError: If a key is missing, unknown or out of range.
    """
    scheme = level.get("scheme")
    if scheme not in SCHEMES:
        raise UserError(f"{where} has scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    ranges = {"token_ratio"} | ({"block_ratio"} if scheme == "hierarchical" else set())
    wanted = ranges | {"scheme"} | other_keys
    if level.keys() != wanted:
        raise UserError(f"{where} has the keys {sorted(level)}; a {scheme} level has {sorted(wanted)}")
    return MaskingLevels(str(scheme), **{name: _read_range(f"{where}.{name}", level[name]) for name in ranges})


def _read_range(where: str, value: Any) -> Range:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(end, int | float) for end in value):
        raise UserError(f"{where} is {value!r}; give two numbers, low and high")
    check_ratio_range(where, *value)
    return float(value[0]), float(value[1])


def _read_place(index: int, level: Mapping[str, Any]) -> float:
    place = level["at"]
    if isinstance(place, bool) or not isinstance(place, int | float) or not math.isfinite(place):
        raise UserError(f"masking schedule: levels[{index}].at is {place!r}; give a number")
    return float(place)
