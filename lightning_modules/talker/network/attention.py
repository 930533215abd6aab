"""How talkers attend: by a mask, or by the structure of block diffusion without the scores that its mask forbids."""

from collections.abc import Callable
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from lightning_modules.talker.network.attention_masks import Visibility, visible_in_causal_context

# A mask, what attends by a structure of its own, or None for all to all.
Attention = Tensor | Callable[[Tensor, Tensor, Tensor], Tensor] | None


def attend(query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
    """Scaled dot-product attention.

    While training on a CPU the scores are written out: the backward pass of the fused kernel is two to three times
    slower there at the lengths that fit a CPU.

    Args:
        query: ``(B, heads, Lq, head_dim)``.
        key: ``(B, heads, Lk, head_dim)``.
        value: ``(B, heads, Lk, head_dim)``.
        attention: True where attention is allowed, ``(Lq, Lk) bool``, or what attends; None allows all.

    Returns:
        ``(B, heads, Lq, head_dim)``.
    """
    if attention is not None and not isinstance(attention, Tensor):
        return attention(query, key, value)
    if query.device.type != "cpu" or not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attention)
    scores = _scores(query, key, attention)
    return scores.softmax(dim=-1) @ value


def _scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is None:
        return scores
    return scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)


@cache
def _fused_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


class FlexAttention:
    """Attention of a GPU that skips the tiles of 128 x 128 pairs which are forbidden as a whole.

    Of the other tiles, it asks for single pairs where not all are allowed. The first call compiles the kernel, without
    a C++ compiler; the second length that comes up compiles one for all lengths.

    Args:
        visible: What may attend to what, on the device of the queries.
    """

    def __init__(self, visible: Visibility) -> None:
        sizes = len(visible.query_block), len(visible.key_block)
        self.block_mask = create_block_mask(visible.rule(), visible.num_rows, None, *sizes, visible.key_rank.device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend, each ``(B, heads, L, head_dim)``."""
        if torch.compiler.is_compiling():  # the compiled function that this is part of takes the kernel in
            return flex_attention(query, key, value, block_mask=self.block_mask)
        return _fused_flex_attention()(query, key, value, block_mask=self.block_mask)


def attention_of(visible: Visibility, is_flex: bool) -> Attention:
    """Give what attends so: :class:`FlexAttention` on a GPU if it is wanted, otherwise a mask."""
    return FlexAttention(visible) if is_flex and _can_flex(visible.key_rank.device) else visible.mask


def _can_flex(device: torch.device) -> bool:
    return device.type == "cuda"


class CausalContextAttention:
    """Attention of ``[x_t, ..., x_t, x_0]`` as of :func:`visible_in_causal_context`.

    On a CPU, a noisy block is scored against itself and the clean copy only: for 4 blocks of 16 and two noisy copies,
    less than half of all pairs. Other devices have fused kernels for the whole mask.

    Args:
        num_blocks: Blocks of a sequence, ``K``.
        block_size: Tokens per block.
        anchors_per_block: Anchor slots per block of the clean copy, ``Q``.
        num_noisy_copies: Copies with masks of their own, ``C``.
        device: Where the mask lives.
        starts: First token of each noisy block, ``(B, N) int64``, in place of whole copies.
        is_flex: Use :class:`FlexAttention` on a GPU.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        anchors_per_block: int,
        num_noisy_copies: int,
        device: torch.device | None = None,
        starts: Tensor | None = None,
        is_flex: bool = False,
    ) -> None:
        self.block_size, self.is_flex = block_size, is_flex
        self.num_noisy_blocks = num_noisy_copies * num_blocks if starts is None else starts.shape[1]
        sizes = num_blocks, block_size, anchors_per_block, num_noisy_copies
        self.visible = visible_in_causal_context(*sizes, device, starts)
        self.of_all = attention_of(self.visible, is_flex)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend, each ``(B, heads, C * L + M, head_dim)``."""
        if not self._is_written_out(query):
            return attend(query, key, value, self.of_all)
        sizes = [self.num_noisy, query.shape[2] - self.num_noisy]
        (noisy_query, clean_query), (noisy_key, clean_key), (noisy_value, clean_value) = (
            states.split(sizes, dim=2) for states in (query, key, value)
        )
        of_clean = attend(clean_query, clean_key, clean_value, self.mask[..., self.num_noisy :, self.num_noisy :])
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
        if not self._is_written_out(query):
            return attend(query, key, value, self.of_noisy)
        sizes = [key.shape[2] - self.num_noisy, self.num_noisy]
        (clean_key, noisy_key), (clean_value, noisy_value) = (states.split(sizes, dim=2) for states in (key, value))
        return self._attend_noisy(query, (noisy_key, noisy_value), (clean_key, clean_value))

    @property
    def num_noisy(self) -> int:
        """Positions of all noisy copies, ``C * L``."""
        return self.num_noisy_blocks * self.block_size

    @property
    def mask(self) -> Tensor:
        """True where attention is allowed, ``(C * L + M, C * L + M) bool``, or ``(B, 1, ...)`` if rows differ."""
        return self.of_all if isinstance(self.of_all, Tensor) else self.visible.mask

    @cached_property
    def of_clean(self) -> Attention:
        """What the clean copy attends to itself by."""
        return attention_of(self.visible.of_clean(self.num_noisy), self.is_flex)

    @cached_property
    def of_noisy(self) -> Attention:
        """What the noisy copies attend to ``[x_0, x_t, ..., x_t]`` by, on other devices than a CPU."""
        return attention_of(self.visible.after_clean(self.num_noisy), self.is_flex)

    def _is_written_out(self, query: Tensor) -> bool:
        return query.device.type == "cpu" and isinstance(self.of_all, Tensor)

    def _attend_noisy(self, query: Tensor, noisy: tuple[Tensor, Tensor], clean: tuple[Tensor, Tensor]) -> Tensor:
        own_block = _scores(self._in_blocks(query), self._in_blocks(noisy[0]), None).flatten(2, 3)
        before = _scores(query, clean[0], self.mask[..., : self.num_noisy, self.num_noisy :])
        weights = torch.cat([own_block, before], dim=-1).softmax(dim=-1)
        on_own_block, on_before = weights.split([self.block_size, before.shape[-1]], dim=-1)
        of_own_block = (self._in_blocks(on_own_block) @ self._in_blocks(noisy[1])).flatten(2, 3)
        return of_own_block + on_before @ clean[1]

    def _in_blocks(self, states: Tensor) -> Tensor:
        return states.unflatten(2, (self.num_noisy_blocks, self.block_size))
