"""Steps of a block as CUDA graphs: the host starts each with one call, and looks at a flag behind every second one."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lightning_modules.talker.decoding.sampling import NoiseOfSteps
from lightning_modules.talker.decoding.static.captured import (
    CAPTURE_ERRORS,
    CapturedRunner,
    check_device,
    copy_into,
    warm_up,
)
from lightning_modules.talker.decoding.static.fused import fused, fused_steps
from lightning_modules.talker.decoding.static.masked_tokens import MaskedProgram
from lightning_modules.talker.decoding.static.program import Block, BlockProgram, Carry, Place, draw
from lightning_modules.talker.decoding.static.runners import OwnCachesRunner
from lightning_modules.talker.decoding.static.steps.progress import BlockInWork, BlockPasses, Progress
from lightning_modules.talker.network.decoding_network import Window
from lightning_modules.talker.network.key_value_cache import StaticCache

T = TypeVar("T")

Replay = Callable[[], None]


def capture_graph(device: torch.device, run: Callable[[], T], keep: Callable[[T], None]) -> Replay:
    """Capture a function of tensors as a CUDA graph.

    Args:
        device: Where it runs.
        run: May be called several times before it is captured.
        keep: Writes what it gives into tensors that stay; captured, too, and not called before.

    Returns:
        What runs both once more, on the values that their tensors then have.

    Raises:
        UserError: If the device is no CUDA device.
    """
    check_device(device)
    warm_up(run, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode=CAPTURE_ERRORS):
        keep(run())
    return graph.replay


# Makes what runs a function and what keeps its result; see :func:`capture_graph`.
Capture = Callable[[torch.device, Callable[[], Progress], Callable[[Progress], None]], Replay]


@dataclass(frozen=True)
class _Start:
    """The first steps as a graph, the tensors that it reads, and the slots that it commits ahead of the block."""

    replay: Replay
    inputs: list[Tensor]
    num_lead: int


@dataclass
class _Steps:
    """The further steps at one length of attention, as graphs, and what they read."""

    work: BlockInWork
    noise: list[Tensor] | None
    unmask_more: Replay | None = None
    correct: Replay | None = None


class CapturedPasses:
    """The passes of a program as graphs over tensors that stay: tokens, order, flag and number of the step.

    Graphs are captured before the first block of their length of attention begins, which they would disturb.

    Args:
        program: Whose passes.
        caches: All blocks are decoded over these.
        batch_size: Rows.
        source: Runs the passes while they are captured.
        capture: Captures a function.
    """

    def __init__(
        self,
        program: MaskedProgram,
        caches: Sequence[StaticCache],
        batch_size: int,
        source: BlockPasses,
        capture: Capture,
    ) -> None:
        self.program, self.caches, self.source, self.capture = program, caches, source, capture
        device = program.device
        tokens = torch.zeros(batch_size, program.parts.block_size, dtype=torch.int64, device=device)
        self.progress = Progress(tokens, tokens.clone(), torch.ones((), dtype=torch.bool, device=device))
        self.step, *self.place = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))
        self.starts: dict[tuple[object, ...], _Start] = {}
        self.steps: dict[int, _Steps] = {}
        self.num_keys = 0

    def start(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None,
    ) -> tuple[Progress, BlockInWork]:
        """Take the first steps; see :class:`BlockPasses`."""
        drawn = draw(noise, self.program.num_first_steps)
        for one, value in zip(self.place, (place.start, place.position), strict=True):
            one.fill_(value)
        key = place.num_keys, *(one.shape for one in carry)
        if key not in self.starts:
            self.starts[key] = self._capture_start(anchors, carry, place.num_keys, drawn)
        started, self.num_keys = self.starts[key], place.num_keys
        copy_into(started.inputs, [anchors, *carry, *(drawn or ())])
        started.replay()
        return self.progress, self.steps[place.num_keys].work._replace(num_lead=started.num_lead)

    def unmask_more(self, progress: Progress, work: BlockInWork, step: int | Tensor, noise: Tensor | None) -> Progress:
        """Take a further step of an adaptive rule; see :class:`BlockPasses`."""
        steps = self.steps[self.num_keys]
        if noise is not None and steps.noise is not None:
            copy_into(steps.noise, [noise])
        assert steps.unmask_more is not None
        steps.unmask_more()
        return self.progress

    def correct(self, progress: Progress, work: BlockInWork, step: int | Tensor) -> Progress:
        """Take a correcting step; see :class:`BlockPasses`."""
        replay = self.steps[self.num_keys].correct
        assert replay is not None
        replay()
        return self.progress

    def _capture_start(self, anchors: Tensor, carry: Carry, num_keys: int, noise: list[Tensor] | None) -> _Start:
        """Capture the first steps, and the further ones of this length of attention, unless they are."""
        inside, anchors, carry = _clones(noise), anchors.clone(), tuple(one.clone() for one in carry)
        start, position = self.place
        where = Place(start, position, num_keys)
        _, work = self.source.start(anchors, carry, self.caches, where, inside)
        steps = self.steps.get(num_keys)
        if steps is None:
            steps = self.steps[num_keys] = _Steps(_kept(work), _clones(noise[:1] if noise else None))
            self._capture_steps(steps)
        kept, num_first_steps = steps.work, self.program.num_first_steps
        started: list[BlockInWork] = []

        def run() -> Progress:
            progress, work = self.source.start(anchors, carry, self.caches, where, inside)
            started[:] = [work]
            return progress

        def keep(progress: Progress) -> None:
            copy_into(_tensors_of_work(kept), _tensors_of_work(started[0]))
            copy_into(self.progress.tensors[: len(progress.tensors)], progress.tensors)
            self.step.fill_(num_first_steps)

        replay = self.capture(self.program.device, run, keep)
        return _Start(replay, [anchors, *carry, *(inside or ())], work.num_lead)

    def _capture_steps(self, steps: _Steps) -> None:
        """Capture the steps that may come behind the first ones."""
        program, work = self.program, steps.work
        self.step.zero_()
        drawn = None if steps.noise is None else steps.noise[0]

        def unmask_more() -> Progress:
            return self.source.unmask_more(self.progress, work, self.step, drawn)

        def correct() -> Progress:
            return self.source.correct(self.progress, work, self.step)

        def keep(progress: Progress) -> None:
            copy_into(self.progress.tensors, progress.tensors)
            self.step.add_(1)

        if program.num_first_steps < program.draft_steps:
            steps.unmask_more = self.capture(program.device, unmask_more, keep)
        if program.refinement is not None:
            steps.correct = self.capture(program.device, correct, keep)


class CapturedSteps(OwnCachesRunner):
    """Runs a program whose blocks end when their tokens say so, each step a CUDA graph.

    Graphs are made for each length of attention, and each shape of carry, as it comes up. The caches are its own: one
    decoding at a time, and the next one writes over what it left.

    Args:
        program: What is run.
        batch_size: Rows of each decoding.
        source: Runs the passes while they are captured, in fewer kernels, say; the program itself if left out.
        capture: Captures a function.

    Raises:
        UserError: When the first block is captured, if the program is on no CUDA device.
    """

    def __init__(
        self,
        program: MaskedProgram,
        batch_size: int = 1,
        source: BlockPasses | None = None,
        capture: Capture = capture_graph,
    ) -> None:
        super().__init__(program, batch_size)
        self.captured = copy.copy(program)
        self.captured.passes = CapturedPasses(program, self.caches, batch_size, source or program, capture)

    @torch.no_grad()
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
        block = self.captured(self.in_own_precision(anchors), carry, caches, place, noise)
        # What the next block writes over must not leave.
        order = None if block.order is None else block.order.clone()
        return block._replace(tokens=block.tokens.clone(), order=order)


def captured(program: BlockProgram, batch_size: int = 1, is_fused: bool = False) -> OwnCachesRunner:
    """Make what runs a program on a GPU: a graph per block, or one per step where a block ends when its tokens say so.

    Args:
        program: What is run.
        batch_size: Rows of each decoding.
        is_fused: Let the compiler fuse kernels before they are captured.

    Raises:
        UserError: If the program is on no CUDA device.
    """
    if program.is_one_function:
        return CapturedRunner(program, batch_size, fused(program) if is_fused else None)
    assert isinstance(program, MaskedProgram)
    return CapturedSteps(program, batch_size, fused_steps(program) if is_fused else None)


def _clones(noise: Sequence[Tensor] | None) -> list[Tensor] | None:
    return None if noise is None else [drawn.clone() for drawn in noise]


def _kept(work: BlockInWork) -> BlockInWork:
    """Give what all blocks of a length of attention write what they share into."""
    slots, cosines, sines, mask = (one.clone() for one in work.rest[:4])
    rest = Window(slots, cosines, sines, mask, None)
    causal = None if work.causal is None else rest._replace(mask=work.causal.mask.clone())
    return work._replace(beside=work.beside.clone(), rest=rest, causal=causal)


def _tensors_of_work(work: BlockInWork) -> list[Tensor]:
    """Give what changes from block to block; a causal window differs from the other one in its mask alone."""
    causal = () if work.causal is None else (work.causal.mask,)
    return [work.beside, *work.rest[:4], *causal]
