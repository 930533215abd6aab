"""Blocks as compiled functions of a CPU: no Python between the layers, and loops that are made for so few rows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.sampling import NoiseOfSteps
from lightning_modules.talker.decoding.static.decoder import StaticDecoder
from lightning_modules.talker.decoding.static.program import Block, BlockProgram, Carry, FlatFunction, Place
from lightning_modules.talker.decoding.static.runners import BlockRunner, EagerRunner, FixedShapeRunner, bucket_of
from lightning_modules.talker.decoding.static.steps.captured_steps import captured
from lightning_modules.talker.network.key_value_cache import StaticCache
from lightning_modules.talker.network.weight_versions import WeightVersion

# Makes a graph faster for inputs of these shapes.
Backend = Callable[[fx.GraphModule, Sequence[Tensor]], Callable[..., tuple[Tensor, ...]]]

MIN_KEYS = 128  # attention over so many slots costs few µs per pass, another length another compilation

OPTIONS: dict[str, Any] = {
    "cpp_wrapper": True,
    "freezing": True,
    # What a row is normalised to is computed once, not again in the loop of each product that reads it.
    "realize_acc_reads_threshold": 2,
    "realize_opcount_threshold": 6,
}


def compile_by_inductor(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Compile into C++ that calls one operator or loop after the other, with weights as constants."""
    from torch._inductor import config  # loading it takes seconds
    from torch._inductor.compile_fx import compile_fx

    with config.patch(OPTIONS):
        return compile_fx(graph, list(inputs))  # type: ignore[return-value]


class CompiledFunction:
    """A function of tensors, traced whole and compiled once for each set of shapes and precisions that comes up.

    What is compiled looks at neither: it reads the memory of another tensor as if it were of the first one's kind.

    Args:
        function: What is compiled.
        backend: Compiles a graph.
    """

    def __init__(self, function: FlatFunction, backend: Backend) -> None:
        self.function, self.backend = function, backend
        self.compiled: dict[tuple[Any, ...], tuple[Callable[..., tuple[Tensor, ...]], Any]] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor, **numbers: int) -> tuple[tuple[Tensor, ...], Any]:
        """Call the function, compiled; its tensors are contiguous."""
        key = *numbers.values(), *((one.shape, one.dtype) for one in inputs)
        found = self.compiled.get(key)
        if found is None:
            found = self.compiled[key] = self._compile(inputs, numbers)
        run, else_ = found
        return run(*inputs), else_

    def _compile(self, inputs: Sequence[Tensor], numbers: dict[str, int]) -> tuple[Callable[..., Any], Any]:
        """Trace with tensors that hold no values, so that a look at one fails, and the caches stay as they are."""
        else_: list[Any] = []

        def tensors_alone(*traced: Tensor) -> tuple[Tensor, ...]:
            tensors, more = self.function(*traced, **numbers)
            else_.append(more)
            return tensors

        graph = make_fx(tensors_alone, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        return self.backend(graph, inputs), else_[-1]


class CompiledRunner(FixedShapeRunner):
    """Runs a program as compiled functions: a block, or a step where tokens come one by one or say when it is done.

    Weights are read when the first block is decoded; other weights need another program. It is for a CPU, and needs a
    C++ compiler; a GPU captures graphs.

    Args:
        program: What is run.
        backend: Compiles a graph.

    Raises:
        UserError: If the program is not on a CPU.
    """

    def __init__(self, program: BlockProgram, backend: Backend = compile_by_inductor) -> None:
        super().__init__(program)
        if program.device.type != "cpu":
            raise UserError(f"a talker on {program.device} is not compiled: that is for a CPU; capture it")
        program.looks_inside = True  # only what is not compiled looks: between the steps of a block
        self.functions: list[CompiledFunction] = []

        def compiler(function: FlatFunction) -> FlatFunction:
            self.functions.append(CompiledFunction(function, backend))
            return self.functions[-1]

        self._decode = program.compiled(compiler)

    def num_keys(self, num_slots: int) -> int:
        """Give one of a few lengths, none of them short; see :class:`BlockRunner`."""
        return bucket_of(max(num_slots, MIN_KEYS), self.program.num_cached)

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
        return self._decode(self.in_own_precision(anchors), carry, caches, place, noise)


@torch.no_grad()
def decode_at_all_lengths(runner: FixedShapeRunner) -> None:
    """Decode blocks of nothing at each length of attention, so that no reply waits for a compiler in its midst.

    They take all steps that a block may take, behind one that is still to be committed and one that is not.

    Args:
        runner: Of one row.
    """
    program, decoder = runner.program, StaticDecoder(runner)
    anchors_per_block, block_size = program.parts.anchors.anchors_per_block, program.parts.block_size
    anchors = program.embed.weight.new_zeros(1, anchors_per_block, program.embed.embedding_dim)
    looked_inside, program.looks_inside = program.looks_inside, False  # behind an EOS there would be less to carry
    decoder.decode(anchors)
    if program.max_blocks > 1:
        decoder.close_block()
        for carry in (decoder.carry, *([program.begin(1)] if program.commits_itself else [])):
            num_slots = program.num_slots(carry)
            for num_keys in sorted({runner.num_keys(one) for one in range(num_slots, program.capacity + 1)}):
                decoder.carry, decoder.start, decoder.position = carry, num_keys - num_slots, block_size
                decoder.decode(anchors)
                decoder.close_block()
    program.looks_inside = looked_inside


class CompiledBlocks:
    """Makes the runners of a talker, each made ready before it first runs, and kept while the weights stay as they are.

    On a CPU blocks are compiled, on a GPU they are captured as graphs, over caches of their own: of one decoding, one
    reply at a time. Layers with adapters run as they are.

    Args:
        backend: Compiles a graph for a CPU.
    """

    def __init__(self, backend: Backend = compile_by_inductor) -> None:
        self.backend = backend
        self._kept: dict[str, tuple[FixedShapeRunner, list[WeightVersion]]] = {}

    def __call__(self, program: BlockProgram) -> BlockRunner:
        """Give what runs a program."""
        if not program.is_plain or program.device.type not in ("cpu", "cuda"):
            return EagerRunner(program)
        key, weights = f"{program.decoding} {program.max_blocks} {program.dtype}", program.weights
        runner, versions = self._kept.get(key, (None, []))
        if runner is None or not all(map(WeightVersion.is_current, versions, weights)):
            runner = captured(program) if program.device.type == "cuda" else CompiledRunner(program, self.backend)
            decode_at_all_lengths(runner)
            self._kept[key] = runner, [WeightVersion.of(weight) for weight in weights]
        return runner

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledBlocks":
        """Let a copied talker compile for itself: it has weights of its own."""
        return CompiledBlocks(self.backend)
