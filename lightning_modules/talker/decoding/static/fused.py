"""Programs in fewer kernels: what stands between two products of matrices becomes one kernel of a compiler."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_modules.talker.decoding.static.program import Block, BlockProgram
from lightning_modules.talker.network.decoding_network import DecodingNetwork, Window
from lightning_modules.talker.network.key_value_cache import OpenLayer, StaticCache

MAX_PASSES_AT_ONCE = 4  # a block of more is compiled pass by pass: compilation takes some seconds for each pass
MAX_SHAPES = 256  # numbers of positions times lengths of attention, of all talkers


def fused(program: BlockProgram, backend: str = "inductor") -> Callable[..., Block]:
    """Give a function that does what a call of a program does, compiled: a block of few passes as a whole.

    Args:
        program: Stays as it is.
        backend: Of :func:`torch.compile`.
    """
    if program.num_steps > MAX_PASSES_AT_ONCE:
        return with_fused_passes(program, backend)
    compiled = torch.compile(program.__call__, fullgraph=True, dynamic=False, backend=backend)

    def run(*inputs: Any) -> Block:
        with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES):
            return compiled(*inputs)

    return run


def with_fused_passes(program: BlockProgram, backend: str = "inductor") -> BlockProgram:
    """Give a program whose passes are compiled one by one; arguments as of :func:`fused`."""
    by_pass = copy.copy(program)
    by_pass.networks = [FusedNetwork(one, backend) for one in program.networks]  # type: ignore[misc]
    return by_pass


class FusedNetwork:
    """A network whose pass is one compiled function, compiled again for each number of positions.

    Args:
        network: What is compiled.
        backend: Of :func:`torch.compile`.
    """

    def __init__(self, network: DecodingNetwork, backend: str) -> None:
        self.network = network
        self._run = torch.compile(self._pass, fullgraph=True, dynamic=False, backend=backend)

    def __getattr__(self, name: str) -> Any:
        """Be what the network is, apart from its pass."""
        return getattr(self.network, name)

    def __call__(self, x: Tensor, window: Window, cache: list[OpenLayer], num_wanted: int) -> Tensor:
        """Run all layers; see :class:`DecodingNetwork`."""
        buffers, num_keys = [layer.buffer for layer in cache], cache[0].keys.shape[2]
        with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES):
            return self._run(x, tuple(window[:4]), buffers, num_keys, num_wanted)

    def _pass(
        self, x: Tensor, window: tuple[Tensor, ...], buffers: list[Tensor], num_keys: int, num_wanted: int
    ) -> Tensor:
        slots, cosines, sines, mask = window
        there = Window(slots, cosines, sines, mask, None)
        return self.network(x, there, StaticCache(buffers).open(num_keys), num_wanted)
