"""How talkers attend: by a mask, or by the structure of block diffusion without the scores that its mask forbids."""

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.talker.network.attention_masks import causal_context_mask, mask_after_clean_copy


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention.

    While training on a CPU the scores are written out: the backward pass of the fused kernel is two to three times
    slower there at the lengths that fit a CPU.

    Args:
        query: ``(B, heads, Lq, head_dim)``.
        key: ``(B, heads, Lk, head_dim)``.
        value: ``(B, heads, Lk, head_dim)``.
        mask: True where attention is allowed, ``(Lq, Lk) bool``; None allows all.

    Returns:
        ``(B, heads, Lq, head_dim)``.
    """
    if query.device.type != "cpu" or not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = _scores(query, key, mask)
    return scores.softmax(dim=-1) @ value


def _scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is None:
        return scores
    return scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)


class CausalContextAttention:
    """Attention of ``[x_t, ..., x_t, x_0]`` under :func:`causal_context_mask`.

    On a CPU, a noisy block is scored against itself and the clean copy only: for 4 blocks of 16 and two noisy copies,
    less than half of all pairs. Other devices have fused kernels for the whole mask.

    Args:
        num_blocks: Blocks of a sequence, ``K``.
        block_size: Tokens per block.
        anchors_per_block: Anchor slots per block of the clean copy, ``Q``.
        num_noisy_copies: Copies with masks of their own, ``C``.
        device: Where the mask lives.
        starts: First token of each noisy block, ``(B, N) int64``, in place of whole copies.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        anchors_per_block: int,
        num_noisy_copies: int,
        device: torch.device | None = None,
        starts: Tensor | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_noisy_blocks = num_noisy_copies * num_blocks if starts is None else starts.shape[1]
        of_heads = None if starts is None else starts[:, None]
        self.mask = causal_context_mask(num_blocks, block_size, anchors_per_block, num_noisy_copies, device, of_heads)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend, each ``(B, heads, C * L + M, head_dim)``."""
        if query.device.type != "cpu":
            return attend(query, key, value, self.mask)
        sizes = [self.num_noisy, query.shape[2] - self.num_noisy]
        (noisy_query, clean_query), (noisy_key, clean_key), (noisy_value, clean_value) = (
            states.split(sizes, dim=2) for states in (query, key, value)
        )
        of_clean = attend(clean_query, clean_key, clean_value, self.clean_mask)
        of_noisy = self._attend_noisy(noisy_query, (noisy_key, noisy_value), (clean_key, clean_value))
        return torch.cat([of_noisy, of_clean], dim=2)

    def after_clean(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from the noisy copies alone, for which the keys and values of the clean one are known.

        Args:
            query: Of ``[x_t, ..., x_t]``, ``(B, heads, C * L, head_dim)``.
            key: Of ``[x_0, x_t, ..., x_t]``, ``(B, heads, M + C * L, head_dim)``.
            value: Likewise.

        Returns:
            ``(B, heads, C * L, head_dim)``.
        """
        if query.device.type != "cpu":
            return attend(query, key, value, self.after_clean_mask)
        sizes = [key.shape[2] - self.num_noisy, self.num_noisy]
        (clean_key, noisy_key), (clean_value, noisy_value) = (states.split(sizes, dim=2) for states in (key, value))
        return self._attend_noisy(query, (noisy_key, noisy_value), (clean_key, clean_value))

    @property
    def num_noisy(self) -> int:
        """Positions of all noisy copies, ``C * L``."""
        return self.num_noisy_blocks * self.block_size

    @property
    def clean_mask(self) -> Tensor:
        """What the clean copy attends to of itself, ``(M, M) bool``, or ``(B, 1, M, M)``."""
        return self.mask[..., self.num_noisy :, self.num_noisy :]

    @cached_property
    def after_clean_mask(self) -> Tensor:
        """What the noisy copies attend to of ``[x_0, x_t, ..., x_t]``, a mask of booleans."""
        return mask_after_clean_copy(self.mask, self.num_noisy)

    def _attend_noisy(self, query: Tensor, noisy: tuple[Tensor, Tensor], clean: tuple[Tensor, Tensor]) -> Tensor:
        own_block = _scores(self._in_blocks(query), self._in_blocks(noisy[0]), None).flatten(2, 3)
        before = _scores(query, clean[0], self.mask[..., : self.num_noisy, self.num_noisy :])
        weights = torch.cat([own_block, before], dim=-1).softmax(dim=-1)
        on_own_block, on_before = weights.split([self.block_size, before.shape[-1]], dim=-1)
        of_own_block = (self._in_blocks(on_own_block) @ self._in_blocks(noisy[1])).flatten(2, 3)
        return of_own_block + on_before @ clean[1]

    def _in_blocks(self, states: Tensor) -> Tensor:
        return states.unflatten(2, (self.num_noisy_blocks, self.block_size))
