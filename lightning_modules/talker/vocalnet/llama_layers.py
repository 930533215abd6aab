"""Llama layers of transformers, run with a cache whose text part grows while the speech part stays."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lightning_modules.talker.vocalnet.sizes import VocalNetSizes

ROPE_BASE = 10_000.0


class GrowingKeys:
    """Keys and values of a stack of layers, behind those of a prefix that grows on its own.

    It is what the layers call a cache. Positions are rotated into the keys, so that what is written keeps its position
    when the prefix grows.

    Args:
        prefix: What stands before, whatever length it has by then; nothing if None.
    """

    def __init__(self, prefix: "GrowingKeys | None" = None) -> None:
        self.prefix = prefix
        self._written: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Count the positions, those of the prefix included."""
        own = self._written[min(self._written)][0].shape[-2] if self._written else 0
        return own + (len(self.prefix) if self.prefix is not None else 0)

    def of_layer(self, layer_index: int) -> list[tuple[Tensor, Tensor]]:
        """Give the keys and values of a layer in pieces, each ``(1, heads, n, head_dim)``."""
        before = self.prefix.of_layer(layer_index) if self.prefix is not None else []
        return before + ([self._written[layer_index]] if layer_index in self._written else [])

    def update(self, keys: Tensor, values: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
        """Append new positions; gives all of the layer, the prefix first."""
        if layer_index in self._written:
            old_keys, old_values = self._written[layer_index]
            keys, values = torch.cat([old_keys, keys], dim=-2), torch.cat([old_values, values], dim=-2)
        self._written[layer_index] = keys, values
        pieces = self.of_layer(layer_index)
        if len(pieces) == 1:
            return pieces[0]
        all_keys, all_values = zip(*pieces, strict=True)
        return torch.cat(all_keys, dim=-2), torch.cat(all_values, dim=-2)


def make_layers(sizes: VocalNetSizes, num_layers: int) -> nn.ModuleList:
    """Build Llama layers of a talker's sizes."""
    config = LlamaConfig(
        vocab_size=sizes.vocabulary.size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.ffn_size,
        num_hidden_layers=num_layers,
        num_attention_heads=sizes.num_heads,
        rms_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    return nn.ModuleList(LlamaDecoderLayer(config, index) for index in range(num_layers))


def rotation(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Give the cosines and sines of rotary positions ``(B, L) int64``, each ``(B, L, head_dim) float32``."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None].float() * (1.0 / ROPE_BASE**exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def run_layers(
    layers: Sequence[nn.Module] | nn.ModuleList, x: Tensor, positions: Tensor, mask: Tensor, keys: GrowingKeys | None
) -> Tensor:
    """Run layers one after the other.

    Args:
        layers: Llama layers.
        x: Embedded positions, ``(B, L, hidden_size)``.
        positions: Rotary position of each, ``(B, L) int64``.
        mask: True where a row may attend, ``(B, L, cached + L) bool``, or one for all rows of a batch.
        keys: Cached positions, which come before those of ``x`` and take these in; None without a cache.

    Returns:
        ``(B, L, hidden_size)``, not normalised.
    """
    first: LlamaDecoderLayer = layers[0]
    cosines, sines = (one.to(x.dtype) for one in rotation(positions, first.self_attn.head_dim))
    for layer in layers:
        x = layer(x, attention_mask=mask[:, None], past_key_values=keys, position_embeddings=(cosines, sines))
    return x


def extend(layers: Sequence[nn.Module] | nn.ModuleList, x: Tensor, keys: GrowingKeys) -> Tensor:
    """Run new positions ``(1, L, hidden_size)`` behind the cached ones, each of which sees all before it."""
    num_cached, num_new = len(keys), x.shape[1]
    columns = torch.arange(num_cached + num_new, device=x.device)
    positions = columns[num_cached:]
    return run_layers(layers, x, positions[None], (columns <= positions[:, None])[None], keys)
