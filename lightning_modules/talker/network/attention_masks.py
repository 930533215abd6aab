"""Attention masks of the talkers, all derived from the order in which positions become known."""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Visibility:
    """What the positions of a training sequence may attend to, told by four numbers per position in place of a mask.

    A position belongs to a noisy block or is clean. It attends to its own noisy block, and to the clean positions up to
    a rank. Attention that skips what it forbids asks for single pairs (:meth:`rule`), other attention for the mask.

    Attributes:
        query_block: Noisy block of each query, ``(Lq,) int64``; -1 if it is clean.
        query_rank: Highest rank of the clean positions that it sees, ``(Lq,) int64``, or ``(B, Lq)`` if rows differ.
        key_block: Noisy block of each key, ``(Lk,) int64``; -2 if it is clean.
        key_rank: Rank of each clean key in the order in which they become known, ``(Lk,) int64``; of noisy ones one
            that nobody sees.
    """

    query_block: Tensor
    query_rank: Tensor
    key_block: Tensor
    key_rank: Tensor

    @property
    def num_rows(self) -> int | None:
        """Rows of a batch, if they differ."""
        return len(self.query_rank) if self.query_rank.ndim == 2 else None

    def rule(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Give what tells whether a query may attend to a key, from the indices of row, head, query and key."""
        query_block, query_rank, key_block, key_rank = self.query_block, self.query_rank, self.key_block, self.key_rank

        def allows(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query_block[query] == key_block[key]) | (key_rank[key] <= query_rank[query])

        def allows_by_row(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query_block[query] == key_block[key]) | (key_rank[key] <= query_rank[row, query])

        return allows if self.num_rows is None else allows_by_row

    @property
    def mask(self) -> Tensor:
        """True where attention is allowed, ``(Lq, Lk) bool``, or ``(B, 1, Lq, Lk)`` if rows differ."""
        sees_clean = self.key_rank <= self.query_rank[..., None]
        allowed = (self.query_block[:, None] == self.key_block) | sees_clean
        return allowed if allowed.ndim == 2 else allowed[:, None]

    def of_clean(self, num_noisy: int) -> "Visibility":
        """Let the clean copy, which stands behind ``num_noisy`` positions, attend to itself alone."""
        of_queries = self.query_block[num_noisy:], self.query_rank[..., num_noisy:]
        return Visibility(*of_queries, self.key_block[num_noisy:], self.key_rank[num_noisy:])

    def after_clean(self, num_noisy: int) -> "Visibility":
        """Let the first ``num_noisy`` positions attend, and the clean copy's keys come first, as a cache holds them."""
        of_queries = self.query_block[:num_noisy], self.query_rank[..., :num_noisy]
        return Visibility(*of_queries, self.key_block.roll(-num_noisy), self.key_rank.roll(-num_noisy))


def visible_up_to(order: Tensor) -> Visibility:
    """Let a position attend to every position that is known no later than itself, as :func:`mask_from_order`.

    Args:
        order: Rank of each position, ``(L,) int64``.
    """
    nowhere = torch.full_like(order, -1)
    return Visibility(nowhere, order, nowhere - 1, order)


def visible_in_clean_context(order: Tensor, num_noisy_copies: int = 1) -> Visibility:
    """Say what ``[x_t, ..., x_t, x_0]`` may attend to: noisy copies and one clean copy of a sequence.

    A noisy position attends to its own block in its own copy and to *clean* earlier blocks; a clean position attends to
    clean positions up to its own block. Training then sees what block decoding sees, and several noisy copies with
    masks of their own share the work on the clean one.

    Args:
        order: Block index of each position of one copy, ``(L,) int64``.
        num_noisy_copies: Copies with masks of their own, ``C``.

    Returns:
        For ``(C + 1) * L`` positions.

    Reference: arXiv 2503.09573, section on vectorised training.
    """
    copies = torch.arange(num_noisy_copies, device=order.device)
    noisy_block = (copies[:, None] * len(order) + order).flatten()
    return _behind_noise(noisy_block, (order - 1).repeat(num_noisy_copies), order)


def visible_in_causal_context(
    num_blocks: int,
    block_size: int,
    anchors_per_block: int,
    num_noisy_copies: int = 1,
    device: torch.device | None = None,
    starts: Tensor | None = None,
) -> Visibility:
    """Say the same of noisy copies, then a clean one in the layout of :func:`anchored_causal_order`.

    A noisy position attends to its own noisy block, and in the clean copy to the tokens before that block and to the
    anchors that are known where it begins. The clean copy is causal: it is what an autoregressive talker sees.

    Args:
        num_blocks: Blocks of a sequence, ``K``.
        block_size: Tokens per block; a noisy copy has ``L = K * block_size`` positions.
        anchors_per_block: Anchor slots per block of the clean copy, ``Q``; it has ``M = K * (Q + block_size)`` slots.
        num_noisy_copies: Copies with masks of their own, ``C``.
        device: Where the numbers live.
        starts: First token of each noisy block, ``(N,)`` or ``(B, N) int64``, in place of whole copies; of any row and
            any place.

    Returns:
        For ``C * L + M`` positions, or ``N * block_size + M``.

    Reference: arXiv 2509.04185 (set block decoding).
    """
    clean = anchored_causal_order(num_blocks, block_size, anchors_per_block, device)
    if starts is None:
        starts = (torch.arange(num_blocks, device=device) * block_size).repeat(num_noisy_copies)
    noisy_block = torch.arange(starts.shape[-1], device=device).repeat_interleave(block_size)
    # Of a token at offset o the rank is o + 1 behind that of its block's anchors; what is known before it is less.
    known_rank = starts // block_size * (block_size + 1) + starts % block_size
    return _behind_noise(noisy_block, known_rank.repeat_interleave(block_size, dim=-1), clean)


def _behind_noise(noisy_block: Tensor, known_rank: Tensor, clean: Tensor) -> Visibility:
    """Put clean positions behind noisy ones, of which the block and the highest rank that they see are given."""
    nowhere, unseen = torch.full_like(clean, -1), torch.full_like(noisy_block, torch.iinfo(torch.int64).max)
    query_rank = torch.cat([known_rank, clean.expand(*known_rank.shape[:-1], -1)], dim=-1)
    key_block = torch.cat([noisy_block, nowhere - 1])
    return Visibility(torch.cat([noisy_block, nowhere]), query_rank, key_block, torch.cat([unseen, clean]))


def mask_behind_committed(order: Tensor, num_committed: int) -> Tensor:
    """Let new positions attend to all committed ones, and among themselves by the order in which they become known.

    Args:
        order: Rank of each new position, from 0, ``(L,) int64``.
        num_committed: Positions whose keys and values a cache holds.

    Returns:
        True where attention is allowed, ``(L, num_committed + L) bool``.
    """
    return mask_from_order(order, torch.cat([order.new_full((num_committed,), -1), order]))
