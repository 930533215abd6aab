"""Steps of a block as functions of tensors alone, for whatever compiles them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_modules.talker.decoding.sampling import NoiseOfSteps
from lightning_modules.talker.decoding.static.passes import put_together, taken_apart
from lightning_modules.talker.decoding.static.program import Carry, FlatFunction, Place, draw
from lightning_modules.talker.decoding.static.steps.progress import BlockInWork, BlockPasses, Progress
from lightning_modules.talker.network.decoding_network import DecodingNetwork, Window
from lightning_modules.talker.network.key_value_cache import StaticCache

Tensors = tuple[Tensor, ...]
# Reveals tokens of a block by its logits; see :meth:`StepProgram.reveal`.
Reveal = Callable[[Tensor, Progress, int | Tensor, Tensor | None], Progress]


class StepProgram(BlockPasses, Protocol):
    """What steps are made of; see :class:`MaskedProgram`."""

    networks: list[DecodingNetwork]

    @property
    def num_first_steps(self) -> int:
        """Steps that a block takes in any case."""
        ...

    def open(
        self, anchors: Tensor, carry: Carry, caches: Sequence[StaticCache], place: Place
    ) -> tuple[Tensor, Window, BlockInWork]:
        """Give what the first pass commits, embedded, its window, and what all passes share."""
        ...

    def draft(self, lead: Tensor, first: Window, work: BlockInWork, noise: NoiseOfSteps | None) -> Progress:
        """Take the first steps."""
        ...

    def reveal(self, logits: Tensor, progress: Progress, step: int | Tensor, noise: Tensor | None) -> Progress:
        """Reveal tokens by an adaptive rule."""
        ...


class FlatSteps:
    """The steps of a program, each one function of tensors, made faster for each set of shapes.

    Args:
        program: Its steps; they stay as they are.
        compiler: Makes a function faster.
        by_pass: Unmasks in place of whole functions: a program whose passes were made faster one by one.
    """

    def __init__(
        self,
        program: StepProgram,
        compiler: Callable[[FlatFunction], FlatFunction],
        by_pass: StepProgram | None = None,
    ) -> None:
        self.program, self.by_pass, self.compiler = program, by_pass, compiler
        self.functions: dict[str, FlatFunction] = {}

    def start(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None,
    ) -> tuple[Progress, BlockInWork]:
        """Lay the block out as it is, and take its first steps; see :class:`BlockPasses`."""
        if self.by_pass is not None:
            return self.by_pass.start(anchors, carry, caches, place, noise)
        lead, first, work = self.program.open(anchors, carry, caches, place)
        drawn = draw(noise, self.program.num_first_steps)
        inputs = lead, work.beside.contiguous(), *taken_apart([first], [work.opened]), *(drawn or ())
        return self._run("draft", self._draft, work, inputs), work

    def unmask_more(self, progress: Progress, work: BlockInWork, step: int | Tensor, noise: Tensor | None) -> Progress:
        """Unmask in one function; see :class:`BlockPasses`."""
        if self.by_pass is not None:
            return self.by_pass.unmask_more(progress, work, step, noise)
        drawn = () if noise is None else (noise,)
        inputs = (*self._read(progress, step, work), *taken_apart([work.rest], [work.opened]), *drawn)
        return self._run("unmask_more", self._unmask_more, work, inputs)

    def correct(self, progress: Progress, work: BlockInWork, step: int | Tensor) -> Progress:
        """Correct in one function; see :class:`BlockPasses`."""
        assert work.causal is not None
        inputs = (*self._read(progress, step, work), *taken_apart([work.causal], [work.opened]))
        return self._run("correct", self._correct, work, inputs)

    def _run(self, name: str, function: FlatFunction, work: BlockInWork, inputs: Sequence[Tensor]) -> Progress:
        if name not in self.functions:
            self.functions[name] = self.compiler(function)
        num_keys = work.opened[0].keys.shape[2]
        tensors, _ = self.functions[name](*inputs, num_keys=num_keys)
        return Progress(*tensors)

    def _read(self, progress: Progress, step: int | Tensor, work: BlockInWork) -> Tensors:
        return progress.tokens, progress.order, torch.as_tensor(step), work.beside.contiguous()

    def _draft(self, lead: Tensor, beside: Tensor, *inputs: Tensor, num_keys: int) -> tuple[Tensors, None]:
        first, work, drawn = self._open(lead.shape[1], beside, inputs, num_keys)
        work = work._replace(rest=first.last(len(first.slots) - lead.shape[1]))
        return self.program.draft(lead, first, work, drawn or None).tensors, None

    def _unmask_more(
        self, tokens: Tensor, order: Tensor, step: Tensor, beside: Tensor, *inputs: Tensor, num_keys: int
    ) -> tuple[Tensors, None]:
        _, work, drawn = self._open(0, beside, inputs, num_keys)
        return self.program.unmask_more(Progress(tokens, order), work, step, drawn[0] if drawn else None).tensors, None

    def _correct(
        self, tokens: Tensor, order: Tensor, step: Tensor, beside: Tensor, *inputs: Tensor, num_keys: int
    ) -> tuple[Tensors, None]:
        _, work, _ = self._open(0, beside, inputs, num_keys)
        return self.program.correct(Progress(tokens, order), work, step).tensors, None

    def _open(
        self, num_lead: int, beside: Tensor, inputs: Sequence[Tensor], num_keys: int
    ) -> tuple[Window, BlockInWork, list[Tensor]]:
        """Put together a window, what the pass with it reads, and the tensors behind it."""
        num_layers = len(self.program.networks[0].layers)
        (window,), (opened,), rest = put_together(inputs, [num_layers], num_keys)
        return window, BlockInWork(beside, window, window, opened, num_lead), rest


class FlatReveal:
    """What an adaptive rule reveals by the logits of a pass, as one function of tensors.

    Args:
        program: Whose rule.
        compiler: Makes the function faster.
    """

    def __init__(self, program: StepProgram, compiler: Callable[[FlatFunction], FlatFunction]) -> None:
        self.program, self._run = program, compiler(self._reveal)

    def __call__(self, logits: Tensor, progress: Progress, step: int | Tensor, noise: Tensor | None) -> Progress:
        """Reveal tokens; see :class:`MaskedProgram`."""
        drawn = () if noise is None else (noise,)
        tensors, _ = self._run(logits, progress.tokens, progress.order, torch.as_tensor(step), *drawn)
        return Progress(*tensors)

    def _reveal(
        self, logits: Tensor, tokens: Tensor, order: Tensor, step: Tensor, *drawn: Tensor
    ) -> tuple[Tensors, Any]:
        return self.program.reveal(logits, Progress(tokens, order), step, drawn[0] if drawn else None).tensors, None
