"""Masking schemes: which positions of a batch a masked-diffusion talker has to predict."""

from typing import Protocol

import torch
from torch import Tensor


class Masking(Protocol):
    """Draws a mask for a batch of block-structured sequences."""

    def __call__(self, is_real: Tensor, block_size: int, generator: torch.Generator) -> Tensor:
        """Draw which positions are masked.

        Args:
            is_real: False in padding, ``(B, L) bool``, ``L`` a multiple of the block size.
            block_size: Tokens a block.
            generator: Source of randomness, on the device of ``is_real``.

        Returns:
            True where masked, never in padding, ``(B, L) bool``.
        """
        ...


def check_ratio_range(name: str, low: float, high: float) -> None:
    """Reject a range of masking ratios that is not within [0, 1] or empty.

    Raises:
        ValueError: If it is.
    """
    if not 0.0 <= low <= high <= 1.0 or high == 0.0:
        raise ValueError(f"{name} is ({low}, {high}): give 0 <= low <= high <= 1 with high above 0.")


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


class GlobalBernoulli:
    """One masking ratio a sequence; every position is masked with that probability.

    Args:
        low: Smallest ratio.
        high: Largest ratio.

    Reference: arXiv 2602.08607, Global Bernoulli masking, gamma_g ~ U(0.3, 0.8).
    """

    def __init__(self, low: float = 0.3, high: float = 0.8) -> None:
        check_ratio_range("GlobalBernoulli (low, high)", low, high)
        self.low, self.high = low, high

    def __call__(self, is_real: Tensor, block_size: int, generator: torch.Generator) -> Tensor:
        """Draw a mask; see :class:`Masking`."""
        batch_size, length = is_real.shape
        ratio = self.low + (self.high - self.low) * _uniform((batch_size, 1), is_real, generator)
        return (_uniform((batch_size, length), is_real, generator) < ratio) & is_real


class BlockBernoulli:
    """One masking ratio a block; every position is masked with its block's probability.

    With clean context each block is a problem of its own, and an independent ratio for each lets one batch
    show the network every stage of decoding, the all-masked first step included.

    Args:
        low: Smallest ratio.
        high: Largest ratio; 1 masks whole blocks at times, as the first decoding step does.

    Reference: arXiv 2503.09573, one noise level a block.
    """

    def __init__(self, low: float = 0.3, high: float = 1.0) -> None:
        check_ratio_range("BlockBernoulli (low, high)", low, high)
        self.low, self.high = low, high

    def __call__(self, is_real: Tensor, block_size: int, generator: torch.Generator) -> Tensor:
        """Draw a mask; see :class:`Masking`."""
        batch_size, length = is_real.shape
        ratio = self.low + (self.high - self.low) * _uniform((batch_size, length // block_size), is_real, generator)
        is_masked = _uniform((batch_size, length), is_real, generator) < ratio.repeat_interleave(block_size, dim=1)
        return is_masked & is_real
