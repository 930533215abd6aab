"""The decoder that every talker shares: RMSNorm, rotary positions, SwiGLU, any attention mask."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.errors import UserError
from lightning_modules.talker.network.attention import Attention, attend, attention_of
from lightning_modules.talker.network.attention_masks import Visibility
from lightning_modules.talker.network.key_value_cache import KeyValueCache


class RotaryPositions(nn.Module):
    """Rotary position embedding.

    Args:
        head_dim: Width of one attention head, even.
        base: Base of the geometric series of wavelengths.

    Reference: arXiv 2104.09864, eq. 34.
    """

    inverse_wavelengths: Tensor

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inverse_wavelengths", base**-exponents, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Give the cosines and sines of each position ``(..., L)``, each ``(..., L, head_dim) float32``."""
        angles = positions[..., None].float() * self.inverse_wavelengths.float()
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    @staticmethod
    def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Rotate queries and keys, ``(..., L, head_dim)``, in their own precision."""
        first, second = x.chunk(2, dim=-1)
        return x * cosines.to(x.dtype) + torch.cat([-second, first], dim=-1) * sines.to(x.dtype)


class DecoderLayer(nn.Module):
    """One pre-norm decoder layer: attention, then a gated feed-forward network."""

    def __init__(self, width: int, num_heads: int, ffn_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-6)
        self.gate_and_up = nn.Linear(width, 2 * ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        attention: Attention,
        cache: KeyValueCache | None,
        layer_index: int,
    ) -> Tensor:
        """Run the layer on ``(B, L, width)``; see :class:`TalkerBackbone`."""
        qkv = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query_and_key, value = qkv.permute(2, 0, 3, 1, 4).contiguous().split([2, 1])
        (query, key), value = RotaryPositions.rotate(query_and_key, *rotation), value[0]
        if cache is not None:
            key, value = cache.write(layer_index, key, value)
        attended = attend(query, key, value, attention)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_and_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class TalkerBackbone(nn.Module):
    """A stack of decoder layers over embedded speech positions.

    Args:
        width: Model width.
        num_layers: Decoder layers; 4 in the paper.
        num_heads: Attention heads.
        ffn_width: Inner width of the feed-forward network; 8/3 of the width, rounded up to 64, if left out.
        rope_base: Base of the rotary wavelengths.
        flex_attention: Train on a GPU with attention that skips what the masks of training forbid, in place of dense
            masks; see :class:`FlexAttention`. It pays for long replies. A CPU trains as without it.

    Raises:
        UserError: If the width does not divide into heads of even size.
    """

    def __init__(
        self,
        width: int,
        num_layers: int = 4,
        num_heads: int = 4,
        ffn_width: int | None = None,
        rope_base: float = 10_000.0,
        flex_attention: bool = False,
    ) -> None:
        super().__init__()
        if width % (2 * num_heads):
            raise UserError(f"width {width} does not divide into {num_heads} heads of even size: change one of them.")
        self.width, self.num_heads, self.head_dim = width, num_heads, width // num_heads
        self.flex_attention = flex_attention
        ffn_width = ffn_width or 64 * math.ceil(8 * width / 3 / 64)
        self.rotary = RotaryPositions(self.head_dim, rope_base)
        self.layers = nn.ModuleList(DecoderLayer(width, num_heads, ffn_width) for _ in range(num_layers))
        self.final_norm = nn.RMSNorm(width, eps=1e-6)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        attention: Attention,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x: Embedded positions, ``(B, L, width)``.
            positions: Index of each position in the speech sequence, ``(L,) int64``, or ``(B, 1, L)`` by row.
            attention: True where a row may attend, ``(L, cached + L) bool``, or what gives the attended values for
                queries, keys and values, the cached ones first; None lets all attend to all.
            cache: Keys and values of the committed positions, which come before those of ``x``. The new ones are
                written behind them, and stay only if the caller commits them.

        Returns:
            Hidden states, ``(B, L, width)``.
        """
        rotation = self.rotary(positions)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, attention, cache, index)
        return self.final_norm(x)

    def attention_of(self, visible: Visibility) -> Attention:
        """Give what attends as training wants it: a mask, or what skips the pairs that it would forbid."""
        return attention_of(visible, self.flex_attention)

    def remember(self, x: Tensor, positions: Tensor, attention: Attention, num_more: int) -> KeyValueCache:
        """Run embedded positions once, for passes over others that attend to them.

        Args:
            x: Embedded positions, ``(B, L, width)``.
            positions: Index of each in the speech sequence, ``(L,) int64``.
            attention: As of :meth:`forward`.
            num_more: Positions of each of these passes.

        Returns:
            A cache of the keys and values, committed.
        """
        cache = self.new_cache(len(x), x.shape[1] + num_more)
        self(x, positions, attention, cache)
        cache.commit(x.shape[1])
        return cache

    def new_cache(self, batch_size: int, capacity: int) -> KeyValueCache:
        """Allocate an empty cache for ``capacity`` positions, in the precision that keys are computed in now.

        Under autocast that is autocast's: a cache of float32 would be converted as a whole in every pass, which costs
        a talker of many passes most.
        """
        weight = self.final_norm.weight
        device = weight.device.type
        is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_cast else weight.dtype
        shape = len(self.layers), batch_size, self.num_heads, capacity, self.head_dim
        return KeyValueCache(*shape, device=weight.device, dtype=dtype)
