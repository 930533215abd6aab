"""Seeds that are pure functions of their purpose."""

import hashlib
from collections.abc import Iterable

import torch


def derive_seed(*parts: int | str) -> int:
    """Hash any parts, such as a run's seed, a talker's name and a global step, into one 63-bit seed."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def derive_generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """Make a generator on a device, seeded by :func:`derive_seed`, so that resuming a run does not change its draws."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def mask_generators(seed: int, names: Iterable[str], *place: int | str) -> dict[str, torch.Generator]:
    """Make a generator of masks for each talker, on the host, which then knows how many positions they mask.

    Args:
        seed: Of the run.
        names: Of the talkers; one draws the same whatever others there are.
        place: Where the masks are drawn, such as the global step.
    """
    return {name: derive_generator("cpu", seed, "masks", name, *place) for name in names}
