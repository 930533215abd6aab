"""Attention masks of the talkers, all derived from the order in which positions become known."""

import torch
from torch import Tensor


def mask_from_order(query_order: Tensor, key_order: Tensor) -> Tensor:
    """Let a position attend to every position that is known no later than itself.

    Args:
        query_order: Rank of each query position, ``(Lq,) int64``.
        key_order: Rank of each key position, ``(Lk,) int64``.

    Returns:
        True where attention is allowed, ``(Lq, Lk) bool``.
    """
    return key_order[None, :] <= query_order[:, None]


def block_causal_order(num_blocks: int, block_size: int, device: torch.device | None = None) -> Tensor:
    """Rank positions by their block: full attention inside a block, causal across blocks.

    With ``block_size = 1`` this is the causal order.

    Returns:
        ``(num_blocks * block_size,) int64``.

    Reference: arXiv 2503.09573 (block diffusion).
    """
    return torch.arange(num_blocks * block_size, device=device) // block_size


def anchored_causal_order(
    num_blocks: int, block_size: int, anchors_per_block: int, device: torch.device | None = None
) -> Tensor:
    """Rank the layout ``[Q anchor slots, block_size token slots]`` repeated once per block.

    All anchors of a block become known together, before its first token: an autoregressive talker then reads
    the same text at the same time as one that predicts the block as a whole. Tokens are causal.

    Returns:
        ``(num_blocks * (anchors_per_block + block_size),) int64``.
    """
    anchors = torch.zeros(anchors_per_block, dtype=torch.int64, device=device)
    one_block = torch.cat([anchors, torch.arange(1, block_size + 1, device=device)])
    starts = torch.arange(num_blocks, device=device) * (block_size + 1)
    return (starts[:, None] + one_block[None, :]).flatten()


def clean_context_mask(order: Tensor, num_noisy_copies: int = 1) -> Tensor:
    """Mask for the concatenation ``[x_t, ..., x_t, x_0]`` of noisy copies and one clean copy of a sequence.

    A noisy position attends to its own block in its own copy and to *clean* earlier blocks; a clean position attends to
    clean positions up to its own block. Training then sees what block decoding sees, and several noisy copies with
    masks of their own share the work on the clean one.

    Args:
        order: Block index of each position of one copy, ``(L,) int64``.
        num_noisy_copies: Copies with masks of their own, ``C``.

    Returns:
        True where attention is allowed, ``((C + 1) * L, (C + 1) * L) bool``.

    Reference: arXiv 2503.09573, section on vectorised training.
    """
    query, key = order[:, None], order[None, :]
    copies = torch.eye(num_noisy_copies, dtype=torch.bool, device=order.device)
    own_noisy_block = torch.kron(copies, query == key)
    earlier_clean = (key < query).repeat(num_noisy_copies, 1)
    no_noise = torch.zeros_like(earlier_clean.T)
    noisy_rows = torch.cat([own_noisy_block, earlier_clean], dim=1)
    clean_rows = torch.cat([no_noise, key <= query], dim=1)
    return torch.cat([noisy_rows, clean_rows], dim=0)


def causal_context_mask(
    num_blocks: int,
    block_size: int,
    anchors_per_block: int,
    num_noisy_copies: int = 1,
    device: torch.device | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """Mask for ``[x_t, ..., x_t, x_0]``: noisy copies, then a clean one in the layout of :func:`anchored_causal_order`.

    A noisy position attends to its own noisy block, and in the clean copy to the tokens before that block and to the
    anchors that are known where it begins. The clean copy is causal: it is what an autoregressive talker sees.

    Args:
        num_blocks: Blocks of a sequence, ``K``.
        block_size: Tokens per block; a noisy copy has ``L = K * block_size`` positions.
        anchors_per_block: Anchor slots per block of the clean copy, ``Q``; it has ``M = K * (Q + block_size)`` slots.
        num_noisy_copies: Copies with masks of their own, ``C``.
        device: Where the mask lives.
        starts: First token of each noisy block, ``(..., N) int64``, in place of whole copies; of any row and any place.

    Returns:
        True where attention is allowed, ``(C * L + M, C * L + M) bool``, or ``(..., N * block_size + M, N * block_size
        + M)``.

    Reference: arXiv 2509.04185 (set block decoding).
    """
    clean = anchored_causal_order(num_blocks, block_size, anchors_per_block, device)
    if starts is None:
        starts = (torch.arange(num_blocks, device=device) * block_size).repeat(num_noisy_copies)
    own_block = torch.eye(starts.shape[-1], dtype=torch.bool, device=device)
    own_noisy_block = own_block.repeat_interleave(block_size, 0).repeat_interleave(block_size, 1)
    # Of a token at offset o the rank is o + 1 behind that of its block's anchors; what is known before it is less.
    known_rank = starts // block_size * (block_size + 1) + starts % block_size
    clean_before = (clean <= known_rank[..., None]).repeat_interleave(block_size, dim=-2)
    rows = starts.shape[:-1]
    no_noise = torch.zeros(*rows, len(clean), len(own_noisy_block), dtype=torch.bool, device=device)
    noisy_rows = torch.cat([own_noisy_block.expand(*rows, -1, -1), clean_before], dim=-1)
    clean_rows = torch.cat([no_noise, mask_from_order(clean, clean).expand(*rows, -1, -1)], dim=-1)
    return torch.cat([noisy_rows, clean_rows], dim=-2)


def mask_after_clean_copy(mask: Tensor, num_noisy: int) -> Tensor:
    """Let the noisy copies read a clean one whose keys and values come first, as a cache holds them.

    Args:
        mask: Of ``[x_t, ..., x_t, x_0]``, ``(..., N + M, N + M) bool``.
        num_noisy: Positions of all noisy copies, ``N``.

    Returns:
        What the noisy copies attend to of ``[x_0, x_t, ..., x_t]``, ``(..., N, M + N) bool``.
    """
    return mask[..., :num_noisy, :].roll(mask.shape[-1] - num_noisy, dims=-1)


def mask_behind_committed(order: Tensor, num_committed: int) -> Tensor:
    """Let new positions attend to all committed ones, and among themselves by the order in which they become known.

    Args:
        order: Rank of each new position, from 0, ``(L,) int64``.
        num_committed: Positions whose keys and values a cache holds.

    Returns:
        True where attention is allowed, ``(L, num_committed + L) bool``.
    """
    return mask_from_order(order, torch.cat([order.new_full((num_committed,), -1), order]))
