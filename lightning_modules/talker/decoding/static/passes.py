"""Passes of networks, and what follows them, as functions of tensors alone, for whatever compiles them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.talker.decoding.static.program import FlatFunction
from lightning_modules.talker.network.decoding_network import DecodingNetwork, Window
from lightning_modules.talker.network.key_value_cache import OpenLayer, open_buffers
from lightning_modules.talker.network.token_coupling import CouplingFunctions, coupled_logits

TENSORS_OF_WINDOW = 4

# Gives coupled logits of hidden states, logits and partly masked blocks; see :func:`coupled_logits`.
Couple = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def taken_apart(windows: Sequence[Window], opened: Sequence[list[OpenLayer]]) -> list[Tensor]:
    """Give the tensors of windows and open caches, one of each per network."""
    tensors = [one for place in windows for one in (place.slots, place.cosines, place.sines, place.mask)]
    return tensors + [layer.buffer for layers in opened for layer in layers]


def put_together(
    tensors: Sequence[Tensor], num_layers: Sequence[int], num_keys: int
) -> tuple[list[Window], list[list[OpenLayer]], list[Tensor]]:
    """Give back what :func:`taken_apart` took apart.

    Args:
        tensors: Its tensors, and any others behind them.
        num_layers: Of each network.
        num_keys: Slots that attention looks at.

    Returns:
        The windows, the open caches, and the tensors that are left.
    """
    rest, windows, opened = list(tensors), [], []
    for _ in num_layers:
        windows.append(Window(*rest[:TENSORS_OF_WINDOW], None))  # type: ignore[call-arg,arg-type]
        del rest[:TENSORS_OF_WINDOW]
    for count in num_layers:
        opened.append(open_buffers(rest[:count], num_keys))
        del rest[:count]
    return windows, opened, rest


class FlatNetwork:
    """A network whose pass is one function of tensors, made faster for each set of shapes.

    Args:
        network: What runs.
        compiler: Makes the function faster.
    """

    def __init__(self, network: DecodingNetwork, compiler: Callable[[FlatFunction], FlatFunction]) -> None:
        self.network = network
        self._run = compiler(self._pass)

    def __getattr__(self, name: str) -> Any:
        """Be what the network is, apart from its pass."""
        return getattr(self.network, name)

    def __call__(self, x: Tensor, window: Window, cache: list[OpenLayer], num_wanted: int) -> Tensor:
        """Run all layers; see :class:`DecodingNetwork`."""
        num_keys = cache[0].keys.shape[2]
        (hidden,), _ = self._run(x, *taken_apart([window], [cache]), num_keys=num_keys, num_wanted=num_wanted)
        return hidden

    def _pass(self, x: Tensor, *inputs: Tensor, num_keys: int, num_wanted: int) -> tuple[tuple[Tensor, ...], None]:
        (window,), (opened,), _ = put_together(inputs, [len(self.network.layers)], num_keys)
        return (self.network(x, window, opened, num_wanted),), None


class FlatCoupling:
    """The coupling of a block's tokens as one function of tensors, made faster for each number of rows.

    Args:
        functions: Of a :class:`TokenCoupling`.
        mask_id: The mask.
        compiler: Makes the function faster.
    """

    def __init__(
        self, functions: CouplingFunctions, mask_id: int, compiler: Callable[[FlatFunction], FlatFunction]
    ) -> None:
        self.functions, self.mask_id = functions, mask_id
        self._run = compiler(self._couple)

    def __call__(self, hidden: Tensor, logits: Tensor, x_t: Tensor | None) -> Tensor:
        """Predict masked tokens from left to right; see :func:`coupled_logits`."""
        x_t = torch.full(hidden.shape[:2], self.mask_id) if x_t is None else x_t
        (coupled,), _ = self._run(hidden, logits, x_t)
        return coupled

    def _couple(self, hidden: Tensor, logits: Tensor, x_t: Tensor) -> tuple[tuple[Tensor, ...], None]:
        return (coupled_logits(self.functions, hidden, logits, x_t, self.mask_id),), None
