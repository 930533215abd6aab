"""Which masked positions a decoding step reveals."""

import torch
from torch import Tensor


def num_to_reveal(num_masked: int, num_steps_left: int) -> int:
    """Share the masked positions of a block evenly over the steps that are left.

    Args:
        num_masked: Positions still masked, ``R_j``.
        num_steps_left: Steps including this one, ``K - j + 1``.

    Returns:
        ``ceil(R_j / (K - j + 1))``.

    Reference: arXiv 2602.08607, block diffusion decoding.
    """
    return -(-num_masked // num_steps_left)


def most_confident(confidence: Tensor, is_masked: Tensor, num_revealed: int) -> Tensor:
    """Choose the masked positions in which the network is surest, the earlier one of equals.

    Args:
        confidence: Probability of the token chosen at each position, ``(..., L)``.
        is_masked: Positions to choose from, ``(..., L) bool``, at least ``num_revealed`` of them in each row.
        num_revealed: Positions to choose in each row.

    Returns:
        True at the chosen positions, ``(..., L) bool``.
    """
    candidates = confidence.masked_fill(~is_masked, -torch.inf)
    order = candidates.argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(is_masked)
    return chosen.scatter(-1, order[..., :num_revealed], True) & is_masked
