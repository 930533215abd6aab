"""Where a language model keeps the keys and values of what was read and written."""

from typing import Any

from torch import Tensor
from transformers import StaticCache


class FixedCache(StaticCache):
    """Keys and values in buffers of a fixed size, written in place at positions that stay on the device.

    One reply needs no allocation per token, and no pass needs a number from the device.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values of new positions; see the base.

        Under autocast a layer may give keys that were normalised in float32, and values in bfloat16, which the base
        writes into buffers of one dtype. That of the keys holds both exactly.
        """
        return super().update(key_states, value_states.to(key_states.dtype), layer_idx, *args, **kwargs)
