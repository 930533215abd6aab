"""Statically allocated caches of attention keys and values: one that grows, and one whose place never changes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of the positions that a decoder has finished.

    A forward pass writes behind the committed positions; what the caller does not commit is overwritten by
    the next pass. Block diffusion needs that: the passes over an unfinished block must leave no trace.

    Args:
        num_layers: Decoder layers.
        batch_size: Rows.
        num_heads: Attention heads.
        capacity: Positions that fit.
        head_dim: Width of a head.
        device: Where the cache lives.
        dtype: Its precision.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        capacity: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (num_layers, 2, batch_size, num_heads, capacity, head_dim)
        self.buffer = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.num_committed = 0

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind the committed ones of a layer.

        Args:
            layer: Index of the layer.
            key: New keys, ``(B, heads, L, head_dim)``.
            value: New values, of the same shape.

        Returns:
            Committed and new keys and values, each ``(B, heads, committed + L, head_dim)``.
        """
        start, stop = self.num_committed, self.num_committed + key.shape[2]
        assert key.dtype == self.buffer.dtype, f"keys of {key.dtype} for a cache of {self.buffer.dtype}"
        assert stop <= self.capacity, f"cache of {self.capacity} positions cannot hold {stop}"
        self.buffer[layer, 0, :, :, start:stop] = key
        self.buffer[layer, 1, :, :, start:stop] = value
        return self.buffer[layer, 0, :, :, :stop], self.buffer[layer, 1, :, :, :stop]

    def commit(self, num_positions: int) -> None:
        """Keep the first ``num_positions`` of the last forward pass."""
        self.num_committed += num_positions
        assert self.num_committed <= self.capacity


class OpenLayer(NamedTuple):
    """The cache of one layer, open for the passes of a block.

    Attributes:
        buffer: Queries, which nothing reads later, keys and values of all slots, ``(B, capacity, 3, heads, head_dim)``:
            all three come out of one product, and are rotated and written by one operator.
        keys: Of the slots that the block may attend to, ``(B, heads, num_keys, head_dim)``, a view of the buffer.
        values: Likewise.
    """

    buffer: Tensor
    keys: Tensor
    values: Tensor


class StaticCache:
    """Keys and values of all rows, in buffers that are written in place.

    Args:
        buffers: One per layer, ``(B, capacity, 3, heads, head_dim)``.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.buffers = list(buffers)

    def open(self, num_keys: int) -> list[OpenLayer]:
        """Open the first slots for the passes of a block."""
        return open_buffers(self.buffers, num_keys)

    def keep(self, rows: Tensor) -> None:
        """Keep some rows, ``(n,) int64``."""
        self.buffers = [buffer.index_select(0, rows) for buffer in self.buffers]


def open_buffers(buffers: Sequence[Tensor], num_keys: int) -> list[OpenLayer]:
    """Open the first slots of the buffers of a cache's layers."""
    opened = []
    for buffer in buffers:
        _, keys, values = buffer.narrow(1, 0, num_keys).transpose(1, 3).unbind(2)
        opened.append(OpenLayer(buffer, keys, values))
    return opened
