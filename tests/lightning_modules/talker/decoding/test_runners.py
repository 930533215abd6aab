"""Compiled and captured blocks are what the program gives as it is."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.sampling import NoiseOfSteps, TokenSampler
from lightning_modules.talker.decoding.static.captured import CapturedRunner
from lightning_modules.talker.decoding.static.compiled import CompiledRunner
from lightning_modules.talker.decoding.static.decoder import StaticDecoder
from lightning_modules.talker.decoding.static.fused import MAX_PASSES_AT_ONCE, fused, with_fused_passes
from lightning_modules.talker.decoding.static.program import Block, BlockProgram, Carry, Place
from lightning_modules.talker.decoding.static.runners import (
    BlockRunner,
    EagerRunner,
    FixedShapeRunner,
    bucket_of,
    has_compiler,
)
from lightning_modules.talker.decoding.streaming import KnownTextState, states_of_row
from lightning_modules.talker.decoding.unmasking import Unmasking
from lightning_modules.talker.network.key_value_cache import StaticCache
from tests.lightning_modules.cuda_syncs import syncs_forbidden
from tests.lightning_modules.talker.conftest import WIDTH, make_talker, make_text

SAMPLED: dict[str, Any] = {"sampler": TokenSampler(0.8, 5), "seed": 3}
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("ntp", 8, {}),
    ("mtp", 3, {}),
    ("mdm", 4, {}),
    ("mdm", 1, {}),
    ("set_block", 2, {}),
    ("coupled", 2, {}),
    ("ntp", 8, SAMPLED),
    ("set_block", 2, SAMPLED),
]


def talker_on(kind: str, device: str) -> AnchoredTalker:
    talker = make_talker(kind).double().to(device)
    assert isinstance(talker, AnchoredTalker)
    return talker


@torch.no_grad()
def tokens_of(runner: BlockRunner, num_blocks: int = 5) -> list[list[int]]:
    """Decode a few blocks of two rows, whatever ends in them."""
    decoder, blocks = StaticDecoder(runner, 2), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_blocks):
        anchors = torch.randn(2, 2, WIDTH, generator=generator, dtype=torch.float64).to(runner.program.device)
        blocks.append(decoder.decode(anchors).tokens.cpu())
        decoder.close_block()
    return torch.cat(blocks, dim=1).tolist()


def programs_of(kind: str, num_steps: int, rules: dict[str, Any], device: str = "cpu") -> tuple[Any, Any]:
    talker = talker_on(kind, device)
    programs = [talker.block_program(12, Decoding("it", num_steps, **rules)) for _ in range(2)]
    programs[0].looks_inside = False
    return programs[0], programs[1]


def test_few_lengths_of_attention_come_up() -> None:
    assert [bucket_of(n, 300) for n in (1, 64, 65, 128, 129, 257, 300)] == [64, 64, 128, 128, 256, 300, 300]


@pytest.mark.parametrize(("kind", "num_steps", "rules"), [("ntp", 8, {}), ("set_block", 2, {})])
def test_attention_over_more_slots_than_there_are_changes_nothing(
    kind: str, num_steps: int, rules: dict[str, Any]
) -> None:
    plain, rounded = programs_of(kind, num_steps, rules)
    runner = EagerRunner(rounded)
    rounded.looks_inside = False
    runner.num_keys = lambda num_slots: bucket_of(num_slots, rounded.capacity)  # type: ignore[method-assign]
    assert tokens_of(runner) == tokens_of(EagerRunner(plain))


def as_traced(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    return graph


@pytest.mark.parametrize(
    ("kind", "num_steps", "rules"),
    [case if case in (CASES[3], CASES[6]) else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_what_is_compiled_is_what_the_program_does(kind: str, num_steps: int, rules: dict[str, Any]) -> None:
    """Five blocks cross from one length of attention into the next, here at 64 slots."""
    plain, traced = programs_of(kind, num_steps, rules)
    runner = CompiledRunner(traced, backend=as_traced)
    runner.num_keys = lambda num_slots: bucket_of(num_slots, traced.num_cached)  # type: ignore[method-assign]
    assert tokens_of(runner) == tokens_of(EagerRunner(plain))
    of_network, *of_coupling = runner.functions
    assert len(of_network.compiled) <= (6 if of_coupling else 4), "first and further ones, for two lengths"
    assert all(len(one.compiled) == 1 for one in of_coupling), "it knows no length"


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # of Inductor
@pytest.mark.parametrize(
    ("kind", "num_steps", "rules"),
    [
        ("ntp", 8, {}),
        ("set_block", 2, {}),
        ("coupled", 2, {}),
        ("ntp", 8, SAMPLED),
        ("set_block", 8, {"refinement": Refinement(2), "unmasking": Unmasking(confidence_threshold=0.3)}),
        ("set_block_coupled", 8, {"refinement": Refinement(1)}),
    ],
)
def test_compiled_blocks_say_the_same(kind: str, num_steps: int, rules: dict[str, Any]) -> None:
    plain, compiled = programs_of(kind, num_steps, rules)
    runner = CompiledRunner(compiled)
    expected = tokens_of(EagerRunner(plain))
    assert tokens_of(runner) == expected
    assert tokens_of(runner) == expected, "a second decoding uses the same functions"


class FunctionRunner(FixedShapeRunner):
    """Runs another function in the place of a program."""

    def __init__(self, program: BlockProgram, function: Callable[..., Block]) -> None:
        super().__init__(program)
        self.function = function

    def __call__(
        self, anchors: Tensor, carry: Carry, caches: Sequence[StaticCache], place: Place, noise: NoiseOfSteps | None
    ) -> Block:
        there = Place(torch.tensor(place.start), torch.tensor(place.position), place.num_keys)
        return self.function(anchors, carry, caches, there, self.draw(noise))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "num_steps", "rules"), [("ntp", 8, {}), ("mtp", 3, {}), ("coupled", 2, {})])
def test_compiled_passes_and_blocks_say_the_same(kind: str, num_steps: int, rules: dict[str, Any]) -> None:
    """More passes than are compiled at once are compiled one by one; the function stands for the kernels of a GPU."""
    plain, compiled = programs_of(kind, num_steps, rules)
    compiled.looks_inside = False
    torch._dynamo.reset()
    expected = tokens_of(EagerRunner(plain))
    assert tokens_of(FunctionRunner(compiled, fused(compiled, backend="aot_eager"))) == expected
    if num_steps <= MAX_PASSES_AT_ONCE:
        assert tokens_of(FunctionRunner(compiled, with_fused_passes(compiled, backend="aot_eager"))) == expected


def test_no_graph_is_captured_on_a_cpu() -> None:
    program, _ = programs_of("mdm", 4, {})
    with pytest.raises(UserError, match="CUDA device"):
        CapturedRunner(program)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch.compile, about TF32 and its own inputs
@pytest.mark.parametrize(("kind", "num_steps", "rules"), CASES)
@pytest.mark.parametrize("is_fused", [False, True])
def test_captured_blocks_say_the_same(kind: str, num_steps: int, rules: dict[str, Any], is_fused: bool) -> None:
    plain, captured = programs_of(kind, num_steps, rules, "cuda")
    runner = CapturedRunner(captured, batch_size=2, function=fused(captured) if is_fused else None)
    expected = tokens_of(EagerRunner(plain))
    assert tokens_of(runner) == expected
    assert tokens_of(runner) == expected, "a second decoding uses the same graphs and caches"
    assert len(runner.graphs) <= 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("kind", "num_steps"), [("ntp", 8), ("mdm", 4), ("set_block", 1)])
def test_a_captured_block_never_waits_for_the_host(kind: str, num_steps: int) -> None:
    _, program = programs_of(kind, num_steps, {}, "cuda")
    runner = CapturedRunner(program, batch_size=2)
    tokens_of(runner)
    decoder, anchors = StaticDecoder(runner, 2), torch.zeros(2, 2, WIDTH, dtype=torch.float64, device="cuda")
    with syncs_forbidden():
        for _ in range(3):
            decoder.decode(anchors)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("kind", "num_steps", "rules"),
    [*CASES, ("mdm", 8, {"unmasking": Unmasking(0.3)}), ("set_block", 8, {"refinement": Refinement(1)})],
)
def test_talkers_speak_the_same_with_captured_blocks(kind: str, num_steps: int, rules: dict[str, Any]) -> None:
    """Blocks start ahead of what is read; a reply that was left is no trouble for the next one."""
    talker, decoding = talker_on(kind, "cuda"), Decoding("it", num_steps, **rules)
    states = [
        KnownTextState(one.hidden.to("cuda"), one.embedding.to("cuda")) for one in states_of_row(make_text([7]), 0)
    ]
    expected = [chunk.tokens.tolist() for chunk in talker.stream(states, 8, decoding)]
    assert len(expected) > 2
    talker.compile_blocks()
    left = talker.stream(states, 8, decoding)
    next(left)
    for _ in range(2):
        assert [chunk.tokens.tolist() for chunk in talker.stream(states, 8, decoding)] == expected
    with pytest.raises(RuntimeError, match="another reply"):
        next(left)
