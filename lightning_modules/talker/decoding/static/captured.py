"""Blocks as CUDA graphs: all passes of a block, unmasking and commit start with one call of the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.sampling import NoiseOfSteps, TokenNoise
from lightning_modules.talker.decoding.static.program import Block, BlockProgram, Carry, Place
from lightning_modules.talker.decoding.static.runners import OneFunctionRunner
from lightning_modules.talker.network.decoding_network import StaticCache

NUM_WARM_UPS = 3


@dataclass(frozen=True)
class _Graph:
    """A captured block: the graph, the tensors that it reads, and the block that it writes."""

    graph: torch.cuda.CUDAGraph
    anchors: Tensor
    carry: Carry
    start: Tensor
    position: Tensor
    noise: list[TokenNoise] | None
    block: Block


class CapturedRunner(OneFunctionRunner):
    """Runs a program as CUDA graphs, one for each length of attention and shape of carry, captured when it comes up.

    The caches are its own: one decoding at a time, and the next one writes over what it left.

    Args:
        program: What is run.
        batch_size: Rows of each decoding.

    Raises:
        UserError: If the program is on no CUDA device, or a block of it is no single function.
    """

    def __init__(self, program: BlockProgram, batch_size: int = 1) -> None:
        super().__init__(program)
        if program.device.type != "cuda":
            raise UserError(f"a talker on {program.device} cannot be captured: bring it to a CUDA device first")
        self.batch_size, self.caches = batch_size, program.new_caches(batch_size)
        self.graphs: dict[tuple[object, ...], _Graph] = {}

    def new_caches(self, batch_size: int) -> list[StaticCache]:
        """Give the only caches; see :class:`BlockRunner`."""
        assert batch_size == self.batch_size, f"captured for {self.batch_size} rows, not {batch_size}"
        return self.caches

    def __call__(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None,
    ) -> Block:
        """Decode a block; see :class:`BlockProgram`."""
        assert all(one is other for one, other in zip(caches, self.caches, strict=True))
        drawn = self.draw(noise)
        key = place.num_keys, *(one.shape for one in carry)
        captured = self.graphs.get(key)
        if captured is None:
            captured = self.graphs[key] = self._capture(anchors, carry, place, drawn)
        captured.anchors.copy_(anchors)
        captured.start.fill_(place.start)
        captured.position.fill_(place.position)
        _copy(captured.carry, carry)
        for inside, outside in zip(captured.noise or [], drawn or [], strict=True):
            _copy([one for one in inside if one is not None], [one for one in outside if one is not None])
        captured.graph.replay()
        block = captured.block
        order, draft = (None if one is None else one.clone() for one in (block.order, block.draft))
        carry = tuple(one.clone() for one in block.carry)
        return block._replace(tokens=block.tokens.clone(), order=order, carry=carry, draft=draft)

    def _capture(self, anchors: Tensor, carry: Carry, place: Place, noise: list[TokenNoise] | None) -> _Graph:
        """Capture a block, which warming up decodes a few times at its place."""
        device = self.program.device
        inside = None
        if noise is not None:
            inside = [TokenNoise(*(None if one is None else one.clone() for one in drawn)) for drawn in noise]
        start, position = (torch.tensor(one, device=device) for one in (place.start, place.position))
        inputs = anchors.clone(), tuple(one.clone() for one in carry), self.caches
        there = Place(start, position, place.num_keys)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                self.program(*inputs, there, inside)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            block = self.program(*inputs, there, inside)
        return _Graph(graph, inputs[0], inputs[1], start, position, inside, block)


def _copy(inside: Sequence[Tensor], outside: Sequence[Tensor]) -> None:
    for one, other in zip(inside, outside, strict=True):
        one.copy_(other)
