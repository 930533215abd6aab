"""Masking schemes: which positions of a batch a masked-diffusion talker has to predict."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_modules.errors import UserError

RowGenerators = Sequence[torch.Generator]


class Masking(Protocol):
    """Draws a mask for a batch of block-structured sequences."""

    def __call__(self, is_real: Tensor, block_size: int, generator: torch.Generator) -> Tensor:
        """Draw which positions are masked.

        Args:
            is_real: False in padding, ``(B, L) bool``, ``L`` a multiple of the block size.
            block_size: Tokens per block.
            generator: Source of randomness, on the device of ``is_real``; that of a training is the host.

        Returns:
            True where masked, never in padding, ``(B, L) bool``.
        """
        ...


def check_ratio_range(name: str, low: float, high: float) -> None:
    """Reject a range of masking ratios that is not within [0, 1] or empty.

    Raises:
        UserError: If it is.
    """
    if not 0.0 <= low <= high <= 1.0 or high == 0.0:
        raise UserError(f"{name} is ({low}, {high}): give 0 <= low <= high <= 1 with high above 0.")


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


def _ratios(bounds: tuple[float, float], shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ratios from ``U(low, high)``."""
    low, high = bounds
    return low + (high - low) * _uniform(shape, like, generator)


class GlobalBernoulli:
    """One masking ratio per sequence; every position is masked with that probability.

    Args:
        low: Smallest ratio.
        high: Largest ratio.

    Reference: arXiv 2602.08607, Global Bernoulli masking, gamma_g ~ U(0.3, 0.8).
    """

    def __init__(self, low: float = 0.3, high: float = 0.8) -> None:
        check_ratio_range("GlobalBernoulli (low, high)", low, high)
        self.bounds = (low, high)

    def __call__(self, is_real: Tensor, block_size: int, generator: torch.Generator) -> Tensor:
        """Draw a mask; see :class:`Masking`."""
        batch_size, length = is_real.shape
        ratio = _ratios(self.bounds, (batch_size, 1), is_real, generator)
        return (_uniform((batch_size, length), is_real, generator) < ratio) & is_real


class BlockBernoulli:
    """One masking ratio per block; every position is masked with its block's probability.

    With clean context each block is a problem of its own, and an independent ratio for each lets one batch
    show the network every stage of decoding, the all-masked first step included.

    Args:
        low: Smallest ratio.
        high: Largest ratio; 1 masks whole blocks at times, as the first decoding step does.

    Reference: arXiv 2503.09573, one noise level per block.
    """

    def __init__(self, low: float = 0.3, high: float = 1.0) -> None:
        check_ratio_range("BlockBernoulli (low, high)", low, high)
        self.bounds = (low, high)

    def __call__(self, is_real: Tensor, block_size: int, generator: torch.Generator) -> Tensor:
        """Draw a mask; see :class:`Masking`."""
        batch_size, length = is_real.shape
        ratio = _ratios(self.bounds, (batch_size, length // block_size), is_real, generator)
        is_masked = _uniform((batch_size, length), is_real, generator) < ratio.repeat_interleave(block_size, dim=1)
        return is_masked & is_real


class HierarchicalBlockwise:
    """A share of the blocks is masked, each in a share of its positions; the other blocks stay clean.

    ``gamma_c ~ U(block_ratio)`` of a sequence's blocks are picked, rounded to whole blocks and at least one; in each of
    them ``gamma_t ~ U(token_ratio)`` of the positions are masked, rounded likewise.

    Args:
        block_ratio: Smallest and largest share of blocks.
        token_ratio: Smallest and largest share of positions in a picked block.

    Reference: arXiv 2602.08607, hierarchical block-wise masking, gamma_c ~ U(0.5, 1.0), gamma_t ~ U(0.3, 1.0).
    """

    def __init__(
        self,
        block_ratio: tuple[float, float] | list[float] = (0.5, 1.0),
        token_ratio: tuple[float, float] | list[float] = (0.3, 1.0),
    ) -> None:
        for name, bounds in (("block_ratio", block_ratio), ("token_ratio", token_ratio)):
            if len(bounds) != 2:
                raise UserError(f"HierarchicalBlockwise {name} is {bounds}: give two numbers, low and high.")
            check_ratio_range(f"HierarchicalBlockwise {name}", *bounds)
        self.block_ratio, self.token_ratio = (block_ratio[0], block_ratio[1]), (token_ratio[0], token_ratio[1])

    def __call__(self, is_real: Tensor, block_size: int, generator: torch.Generator) -> Tensor:
        """Draw a mask; see :class:`Masking`."""
        is_real_block = is_real.unflatten(1, (-1, block_size)).any(dim=2)
        batch_size, num_blocks = is_real_block.shape
        gamma_c = _ratios(self.block_ratio, (batch_size, 1), is_real, generator)
        num_picked = _whole(gamma_c, is_real_block.sum(dim=1, keepdim=True))
        is_picked = _random_ranks(is_real_block, generator) < num_picked
        gamma_t = _ratios(self.token_ratio, (batch_size, num_blocks, 1), is_real, generator)
        in_blocks = is_real.unflatten(1, (num_blocks, block_size))
        num_masked = _whole(gamma_t, in_blocks.sum(dim=2, keepdim=True))
        is_masked = (_random_ranks(in_blocks, generator) < num_masked) & is_picked[..., None]
        return is_masked.flatten(1) & is_real


def _whole(ratio: Tensor, count: Tensor) -> Tensor:
    """Round a share of a count to a whole number, at least 1 where there is anything."""
    return (ratio * count).round().long().clamp(min=1).minimum(count)


def _random_ranks(is_candidate: Tensor, generator: torch.Generator) -> Tensor:
    """Rank candidates in random order along the last dimension, ``0..n-1``; others come behind them."""
    keys = _uniform(tuple(is_candidate.shape), is_candidate, generator).masked_fill(~is_candidate, torch.inf)
    return keys.argsort(dim=-1).argsort(dim=-1)


def check_copies(num_copies: int, complementary: bool) -> None:
    """Reject a number of noisy copies that :func:`draw_copies` cannot draw.

    Raises:
        UserError: If it is below 1, or odd where copies come in complementary pairs.
    """
    if num_copies < 1:
        raise UserError(f"num_noisy_copies is {num_copies}: give at least 1, or there is nothing to unmask.")
    if complementary and num_copies % 2:
        raise UserError(f"num_noisy_copies is {num_copies}: complementary masks come in pairs, so give an even number.")


def draw_copies(
    masking: Masking,
    is_real: Tensor,
    block_size: int,
    generator: torch.Generator | RowGenerators,
    num_copies: int = 1,
    complementary: bool = False,
) -> list[Tensor]:
    """Draw the masks of several noisy copies of a batch.

    Args:
        masking: Draws one mask.
        is_real: False in padding, ``(B, L) bool``.
        block_size: Tokens per block.
        generator: Source of randomness; one per row draws a row's masks alike in any batch, whatever its padding.
        num_copies: Copies, ``C``.
        complementary: Let each second copy mask what the one before it leaves clean, so that every token is scored.

    Returns:
        ``C`` masks, ``(B, L) bool``.

    Reference: complementary masks are those of arXiv 2505.16839 (LaViDa).
    """
    if not isinstance(generator, torch.Generator):
        rows = [torch.zeros_like(is_real) for _ in range(num_copies)]
        for row, own in enumerate(generator):
            length = int(is_real[row].sum())
            alone = is_real[row : row + 1, :length]
            for copy, mask in enumerate(draw_copies(masking, alone, block_size, own, num_copies, complementary)):
                rows[copy][row, :length] = mask[0]
        return rows
    masks: list[Tensor] = []
    for copy in range(num_copies):
        is_complement = complementary and copy % 2 == 1
        masks.append(is_real & ~masks[-1] if is_complement else masking(is_real, block_size, generator))
    return masks
