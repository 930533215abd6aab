"""Blocks as CUDA graphs: all passes of a block, unmasking and commit start with one call of the host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.sampling import NoiseOfSteps
from lightning_modules.talker.decoding.static.program import Block, BlockProgram, Carry, Place
from lightning_modules.talker.decoding.static.runners import OwnCachesRunner
from lightning_modules.talker.network.key_value_cache import StaticCache

NUM_WARM_UPS = 3
CAPTURE_ERRORS = "thread_local"  # a thinker may run in another thread meanwhile

T = TypeVar("T")


@dataclass(frozen=True)
class _Graph:
    """A captured block: the graph, the tensors that it reads, how far it moves, and the block that it writes.

    What is spoken, ``(1 to 3, B, n) int64``, are tokens, and order and draft where there are any, in one tensor.
    """

    graph: torch.cuda.CUDAGraph
    anchors: Tensor
    carry: Carry
    moves_by: Tensor
    noise: list[Tensor] | None
    block: Block
    spoken: Tensor

    @property
    def reads_its_own(self) -> bool:
        """Whether the carry that it writes is one that it can read; then the graph copies it into its inputs."""
        return [one.shape for one in self.carry] == [one.shape for one in self.block.carry]


class CapturedRunner(OwnCachesRunner):
    """Runs a program as CUDA graphs, one for each length of attention and shape of carry, captured when it comes up.

    The caches are its own, and so is what a block hands on to the next one: one decoding at a time, and the next one
    writes over what it left. The graphs themselves move the place to the next block, so that between two blocks of a
    reply the host starts few operators.

    Args:
        program: What is run.
        batch_size: Rows of each decoding.
        function: Does what a call of the program does, in fewer kernels; the program itself if left out.

    Raises:
        UserError: If the program is on no CUDA device.
    """

    runs_ahead = True

    def __init__(
        self, program: BlockProgram, batch_size: int = 1, function: Callable[..., Block] | None = None
    ) -> None:
        assert program.is_one_function, "what the host looks into is captured step by step"
        check_device(program.device)
        super().__init__(program, batch_size)
        self.function = program if function is None else function
        self.graphs: dict[tuple[object, ...], _Graph] = {}
        self._place = torch.zeros(2, dtype=torch.int64, device=program.device)
        self._known_place = (0, 0)

    def __call__(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None,
    ) -> Block:
        """Decode a block; see :class:`BlockProgram`."""
        self.check_turn(caches)
        anchors, drawn = self.in_own_precision(anchors), self.draw(noise)
        key = place.num_keys, *(one.shape for one in carry)
        captured = self.graphs.get(key)
        if captured is None:
            captured = self.graphs[key] = self._capture(anchors, carry, place, drawn)
        captured.anchors.copy_(anchors)
        self._move_to(place)
        if carry is not captured.block.carry or not captured.reads_its_own:
            copy_into(captured.carry, carry)
        copy_into(captured.noise or [], drawn or [])
        captured.graph.replay()
        block = captured.block
        start, position = self._known_place
        self._known_place = start + block.num_committed, position + self.program.parts.block_size
        spoken = iter(captured.spoken.clone())
        tokens, order, draft = (
            None if one is None else next(spoken) for one in (block.tokens, block.order, block.draft)
        )
        assert tokens is not None
        return block._replace(tokens=tokens, order=order, draft=draft)

    def _move_to(self, place: Place) -> None:
        """Tell the device where a block stands, unless it knows."""
        there = int(place.start), int(place.position)
        if there != self._known_place:
            for one, value in zip(self._place, there, strict=True):
                one.fill_(value)
            self._known_place = there

    def _capture(self, anchors: Tensor, carry: Carry, place: Place, noise: list[Tensor] | None) -> _Graph:
        """Capture a block, which warming up decodes a few times at its place."""
        device = self.program.device
        inside = None if noise is None else [drawn.clone() for drawn in noise]
        self._move_to(place)
        start, position = self._place
        inputs = anchors.clone(), tuple(one.clone() for one in carry), self.caches
        there = Place(start, position, place.num_keys)
        block = warm_up(lambda: self.function(*inputs, there, inside), device)
        moves_by = torch.tensor([block.num_committed, self.program.parts.block_size], device=device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode=CAPTURE_ERRORS):
            block = self.function(*inputs, there, inside)
            spoken = torch.stack([one for one in (block.tokens, block.order, block.draft) if one is not None])
            self._place += moves_by
            captured = _Graph(graph, inputs[0], inputs[1], moves_by, inside, block, spoken)
            if captured.reads_its_own:
                copy_into(captured.carry, block.carry)
        return captured


def check_device(device: torch.device) -> None:
    """Refuse to capture elsewhere than on a GPU.

    Raises:
        UserError: If the device is no CUDA device.
    """
    if device.type != "cuda":
        raise UserError(f"a talker on {device} cannot be captured: bring it to a CUDA device first")


def warm_up(run: Callable[[], T], device: torch.device) -> T:
    """Call a few times, on a stream of its own, what is captured next; give what the last call gave."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(NUM_WARM_UPS):
            result = run()
    torch.cuda.current_stream(device).wait_stream(stream)
    return result


def copy_into(inside: Sequence[Tensor], outside: Sequence[Tensor]) -> None:
    """Copy tensors into others of the same shapes."""
    for one, other in zip(inside, outside, strict=True):
        one.copy_(other)
