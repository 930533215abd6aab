"""Ways to run one and the same decoding: what differs between them is time, not tokens."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_modules.adapters.lora import adapter_names
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.static.batch import decode_batch
from lightning_modules.talker.decoding.static.compiled import CompiledRunner, decode_at_all_lengths
from lightning_modules.talker.decoding.static.decoder import StaticDecoder
from lightning_modules.talker.decoding.static.program import BlockProgram
from lightning_modules.talker.decoding.static.runners import (
    BlockRunner,
    EagerRunner,
    cpp_compiler,
    has_compiler,
)
from lightning_modules.talker.decoding.static.steps.captured_steps import captured
from lightning_modules.talker.decoding.streaming import AnchorReader, SpeechChunk, TextState, stream_blocks
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.prepared import prepare_for_decoding

# Gives the speech tokens of each row of a batch of texts.
BatchRunner = Callable[[TextStates], Sequence[Tensor]]


class Runner(Protocol):
    """Speaks a text."""

    def __call__(self, text: Iterable[TextState], num_blocks: int | None = None, /) -> Iterator[SpeechChunk]:
        """Give the speech chunk by chunk.

        Args:
            text: What is said.
            num_blocks: Blocks, at most as many as it was prepared for; as many if None.
        """
        ...


class Execution(Protocol):
    """A way to run decodings, in the precision that is on when it is prepared and when it runs."""

    def prepare(self, talker: Talker, decoding: Decoding, num_blocks: int) -> Runner | None:
        """Make what decodes replies of so many blocks; it may compile, capture or pack weights.

        Args:
            talker: A talker in evaluation mode, which other executions use, too.
            decoding: How it decodes.
            num_blocks: Blocks of each reply.

        Returns:
            What runs; None if this execution does not know such a talker or decoding.
        """
        ...

    def prepare_batch(self, talker: Talker, decoding: Decoding, num_blocks: int, batch_size: int) -> BatchRunner | None:
        """Make what decodes so many replies at once; None if this execution decodes one by one."""
        ...


@dataclass(frozen=True)
class Stepwise:
    """The talkers' own code, step by step over a cache that grows: the reference for all others.

    Attributes:
        autocast: Compute in bfloat16 with weights as they are, whatever the precision around it is.
    """

    autocast: bool = False

    def prepare(self, talker: Talker, decoding: Decoding, num_blocks: int) -> Runner | None:
        """Know every talker; see :class:`Execution`."""
        device = next(talker.parameters()).device.type
        stream = talker.stream_stepwise if isinstance(talker, AnchoredTalker) else talker.stream

        def run(text: Iterable[TextState], fewer: int | None = None) -> Iterator[SpeechChunk]:
            with torch.autocast(device, torch.bfloat16) if self.autocast else nullcontext():
                yield from stream(text, fewer or num_blocks, decoding)

        return run

    def prepare_batch(self, talker: Talker, decoding: Decoding, num_blocks: int, batch_size: int) -> BatchRunner | None:
        """Decode one by one; see :class:`Execution`."""
        return None


@dataclass(frozen=True)
class Static:
    """Static block decoding, operator by operator."""

    def new_runner(self, program: BlockProgram, batch_size: int) -> BlockRunner | None:
        """Make what runs a block; None if this program, or this machine, is not fit for it."""
        return EagerRunner(program)

    def prepare(self, talker: Talker, decoding: Decoding, num_blocks: int) -> Runner | None:
        """Know the talkers that read text as anchors; see :class:`Execution`."""
        if not isinstance(talker, AnchoredTalker):
            return None
        runner, eos_id = self.new_runner(talker.block_program(num_blocks, decoding), 1), talker.vocabulary.eos_id
        if runner is None:
            return None

        def run(text: Iterable[TextState], fewer: int | None = None) -> Iterator[SpeechChunk]:
            reader = AnchorReader(talker.anchors, text)
            return stream_blocks(StaticDecoder(runner), reader, fewer or num_blocks, eos_id)

        return run

    def prepare_batch(self, talker: Talker, decoding: Decoding, num_blocks: int, batch_size: int) -> BatchRunner | None:
        """Know the same talkers; see :class:`Execution`."""
        if not isinstance(talker, AnchoredTalker):
            return None
        runner = self.new_runner(talker.block_program(num_blocks, decoding), batch_size)
        if runner is None:
            return None

        @torch.no_grad()
        def run(text: TextStates) -> Sequence[Tensor]:
            decoder, anchors = StaticDecoder(runner, batch_size), talker.anchors(text, num_blocks)
            return [reply.tokens for reply in decode_batch(decoder, anchors, talker.vocabulary.eos_id)]

        return run


@dataclass(frozen=True)
class Compiled(Static):
    """Static block decoding with each block, or step, compiled as one function, on a CPU; needs a C++ compiler."""

    def new_runner(self, program: BlockProgram, batch_size: int) -> BlockRunner | None:
        """Compile; see :class:`Static`."""
        if program.device.type != "cpu":
            return None
        if not has_compiler():
            print(f"no C++ compiler ({cpp_compiler()}): nothing is compiled", flush=True)
            return None
        if not program.is_plain:
            return None
        runner = CompiledRunner(program)
        if batch_size == 1:
            # A warm-up would count compilation as decoding, and may not meet each kind of step.
            decode_at_all_lengths(runner)
        return runner


@dataclass(frozen=True)
class Captured(Static):
    """Static block decoding with each block captured as one CUDA graph, or each of its steps where the host looks.

    It needs a GPU.

    Attributes:
        is_fused: Let the compiler fuse kernels before they are captured.
    """

    is_fused: bool = False

    def new_runner(self, program: BlockProgram, batch_size: int) -> BlockRunner | None:
        """Capture; see :class:`Static`."""
        return captured(program, batch_size, self.is_fused) if program.device.type == "cuda" else None


@dataclass(frozen=True)
class Prepared:
    """Another execution with linear layers that are packed for few rows on a CPU.

    It knows no talkers with adapters: its copy would not follow when another one is selected.

    Attributes:
        execution: The other one.
    """

    execution: Execution
    copies: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def prepare(self, talker: Talker, decoding: Decoding, num_blocks: int) -> Runner | None:
        """Pack, on a CPU; see :class:`Execution`."""
        packed = self._packed(talker)
        return None if packed is None else self.execution.prepare(packed, decoding, num_blocks)

    def prepare_batch(self, talker: Talker, decoding: Decoding, num_blocks: int, batch_size: int) -> BatchRunner | None:
        """Pack, on a CPU; see :class:`Execution`."""
        packed = self._packed(talker)
        return None if packed is None else self.execution.prepare_batch(packed, decoding, num_blocks, batch_size)

    def _packed(self, talker: Talker) -> Talker | None:
        """Copy a talker's modules, which others use as they are, but no weights, and what talkers share once."""
        if next(talker.parameters()).device.type != "cpu" or adapter_names(talker):
            return None
        self.copies.update({id(one): one for one in talker.parameters()})
        packed = copy.deepcopy(talker, self.copies)
        prepare_for_decoding(packed)
        return packed
