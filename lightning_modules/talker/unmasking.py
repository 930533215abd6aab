"""Unmasking a block: which masked positions a decoding step reveals, and the steps themselves."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from lightning_modules.talker.sampling import TokenSampler

Count = TypeVar("Count", int, Tensor)


def num_to_reveal(num_masked: Count, num_steps_left: int) -> Count:
    """Share the masked positions of a block evenly over the steps that are left.

    Args:
        num_masked: Positions still masked, ``R_j``, of one block or int64 of any shape of many.
        num_steps_left: Steps including this one, ``K - j + 1``.

    Returns:
        ``ceil(R_j / (K - j + 1))``.

    Reference: arXiv 2602.08607, block diffusion decoding.
    """
    return -(-num_masked // num_steps_left)


def most_confident(confidence: Tensor, is_masked: Tensor, num_revealed: int | Tensor) -> Tensor:
    """Choose the masked positions in which the network is surest, the earlier one of equals.

    Args:
        confidence: Probability of the token chosen at each position, ``(..., L)``.
        is_masked: Positions to choose from, ``(..., L) bool``, at least ``num_revealed`` of them in each row.
        num_revealed: Positions to choose in each row, for all or ``(..., 1) int64``.

    Returns:
        True at the chosen positions, ``(..., L) bool``.
    """
    candidates = confidence.masked_fill(~is_masked, -torch.inf)
    order = candidates.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, ranks)
    return (rank < num_revealed) & is_masked


def unmask_block(
    predict: Callable[[Tensor], Tensor], masked: Tensor, mask_id: int, num_steps: int, sampler: TokenSampler
) -> Tensor:
    """Reveal a masked block in ``num_steps`` steps, the most confident positions first.

    Args:
        predict: Gives the logits ``(B, block_size, V)`` of a partly masked block ``(B, block_size)``; called each step.
        masked: A block of nothing but masks, ``(B, block_size) int64``.
        mask_id: The mask.
        num_steps: Steps, ``K``, at most the block size.
        sampler: Chooses tokens.

    Returns:
        The tokens, ``(B, block_size) int64``.

    Reference: arXiv 2602.08607, block diffusion decoding.
    """
    tokens, num_masked = masked, masked.shape[1]
    for step in range(num_steps):
        candidates, confidence = sampler(predict(tokens))
        num_revealed = num_to_reveal(num_masked, num_steps - step)
        revealed = most_confident(confidence, tokens == mask_id, num_revealed)
        tokens = torch.where(revealed, candidates, tokens)
        num_masked -= num_revealed
    return tokens


def powers_of_two_up_to(block_size: int) -> tuple[int, ...]:
    """Steps a block that any masked-diffusion talker offers: 4, the paper's default, then the other powers of two."""
    powers = [2**n for n in range(block_size.bit_length()) if 2**n <= block_size]
    return tuple(sorted(powers, key=lambda steps: (steps != 4, -steps)))
