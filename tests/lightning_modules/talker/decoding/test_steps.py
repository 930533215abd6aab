"""Blocks that end when their tokens say so: each step is one function, and the host looks at its flag between steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.errors import UserError
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.static.compiled import CompiledRunner
from lightning_modules.talker.decoding.static.decoder import StaticDecoder
from lightning_modules.talker.decoding.static.fused import fused_steps
from lightning_modules.talker.decoding.static.masked_tokens import MaskedProgram
from lightning_modules.talker.decoding.static.program import BlockProgram, Place
from lightning_modules.talker.decoding.static.runners import BlockRunner, EagerRunner
from lightning_modules.talker.decoding.static.steps.captured_steps import CapturedSteps, captured
from lightning_modules.talker.decoding.static.steps.flat_steps import FlatSteps
from lightning_modules.talker.decoding.static.steps.progress import BlockInWork, BlockPasses, Progress
from lightning_modules.talker.decoding.streaming import AnchorReader, SpeechChunk, states_of_row, stream_blocks
from lightning_modules.talker.decoding.unmasking import Unmasking
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.network.anchors import TextStates
from tests.lightning_modules.talker.conftest import WIDTH, build_talker, in_steps, make_talker, make_text
from tests.lightning_modules.talker.decoding.test_compiled import as_traced
from tests.lightning_modules.talker.decoding.test_static import Operators

THRESHOLD, BOUND = Unmasking(confidence_threshold=0.3), Unmasking(entropy_bound=2.0)
ADAPTIVE: list[tuple[str, dict[str, Any]]] = [
    ("mdm", {"unmasking": THRESHOLD}),
    ("set_block", {"unmasking": BOUND}),
    ("coupled", {"unmasking": BOUND}),
]
REFINED: list[tuple[str, dict[str, Any]]] = [
    ("set_block", {"refinement": Refinement(1)}),
    ("set_block_coupled", {"refinement": Refinement(2)}),
    ("set_block", {"refinement": Refinement(1), "fused_commit": False}),
    ("set_block", {"refinement": Refinement(4), "unmasking": THRESHOLD}),
    ("set_block_coupled", {"refinement": Refinement(4), "unmasking": BOUND}),
]
DRAWN: list[tuple[str, dict[str, Any]]] = [
    ("mdm", {"unmasking": THRESHOLD, "sampler": TokenSampler(0.8, 5), "seed": 3}),
    ("set_block", {"unmasking": BOUND, "sampler": TokenSampler(0.8, 5), "seed": 1}),
]
CASES = [*ADAPTIVE, *REFINED, *DRAWN]


@torch.no_grad()
def exact(kind: str) -> AnchoredTalker:
    """Make a talker that reads all tokens, masked ones too, as nearly the same: some blocks are soon settled."""
    talker = make_talker(kind).double()
    assert isinstance(talker, MaskedTalker)
    tokens = talker.embed_tokens.weight
    mask = tokens[talker.vocabulary.mask_id].clone()
    tokens.copy_(mask + 0.3 * (tokens - mask))
    talker.head.weight *= 2.0
    if talker.coupling is not None:
        talker.coupling.predict.weight *= 0.2
    return talker


def text_of(num_tokens: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> TextStates:
    text = make_text([num_tokens])
    return TextStates(text.hidden.to(device, dtype), text.embedding.to(device, dtype), text.lengths)


def as_told(chunks: list[SpeechChunk]) -> list[tuple[Any, ...]]:
    told = []
    for one in chunks:
        tensors = [each.tolist() for each in (one.tokens, one.order, one.draft) if each is not None]
        told.append((one.num_forwards, one.ended, *tensors))
    return told


def program_of(talker: AnchoredTalker, rules: dict[str, Any], num_steps: int = 8, max_blocks: int = 5) -> MaskedProgram:
    program = talker.block_program(max_blocks, in_steps(num_steps, **rules))
    assert isinstance(program, MaskedProgram) and not program.is_one_function
    return program


def captured_by_calling(
    device: torch.device, run: Callable[[], Progress], keep: Callable[[Progress], None]
) -> Callable[[], None]:
    """Stand for a graph, which runs the same on what its tensors hold when it is replayed."""
    return lambda: keep(run())


def compiled_by(program: MaskedProgram) -> BlockRunner:
    return CompiledRunner(program, as_traced)


def captured_by(program: MaskedProgram) -> BlockRunner:
    return CapturedSteps(program, capture=captured_by_calling)


def flat_captured_by(program: MaskedProgram) -> BlockRunner:
    return CapturedSteps(program, source=FlatSteps(program, lambda function: function), capture=captured_by_calling)


WAYS = {"eager": EagerRunner, "compiled": compiled_by, "captured": captured_by, "flat": flat_captured_by}


def _case(kind: str, rules: dict[str, Any], way: str) -> Any:
    """Trace few of them in the fast tests."""
    is_slow = way == "compiled" and (kind, rules) not in (ADAPTIVE[0], REFINED[0], REFINED[4], DRAWN[1])
    return pytest.param(kind, rules, way, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize(("kind", "rules", "way"), [_case(*case, way) for case in CASES for way in WAYS])
def test_all_ways_say_what_stepwise_decoding_says_in_as_many_passes(kind: str, rules: dict[str, Any], way: str) -> None:
    """Twice, since a second reply finds compiled functions, graphs and tensors of the first one."""
    talker, text = exact(kind), text_of(7)
    states = states_of_row(text, 0)
    expected = as_told(list(talker.stream_stepwise(states, 5, in_steps(8, **rules))))
    runner = WAYS[way](program_of(talker, rules))
    for _ in range(2):
        reader = AnchorReader(talker.anchors, states)
        chunks = stream_blocks(StaticDecoder(runner), reader, 5, talker.vocabulary.eos_id)
        assert as_told(list(chunks)) == expected
    assert len(expected) > 2 and len({num_forwards for num_forwards, *_ in expected}) > 1, "of different lengths"


def test_a_reply_that_was_left_cannot_go_on_in_the_caches_of_the_next_one() -> None:
    talker, states = exact("set_block"), states_of_row(text_of(7), 0)
    runner = captured_by(program_of(talker, {"refinement": Refinement(1)}))
    left, other = (
        stream_blocks(StaticDecoder(runner), AnchorReader(talker.anchors, states), 5, talker.vocabulary.eos_id)
        for _ in range(2)
    )
    with pytest.raises(RuntimeError, match="another reply"):
        next(left)
    assert not next(other).is_last


@torch.no_grad()
def blocks_of(runner: BlockRunner, batch_size: int, num_blocks: int = 5) -> list[tuple[Any, ...]]:
    """Decode blocks, whatever ends in them: tokens, drafts, order, passes and committed slots of each."""
    decoder, told = StaticDecoder(runner, batch_size), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_blocks):
        anchors = torch.randn(batch_size, 2, WIDTH, generator=generator, dtype=torch.float64)
        block = decoder.decode(anchors.to(runner.program.device))
        told.append((*block.tokens.tolist(), *block.order.tolist(), block.num_forwards, block.num_committed))
        decoder.close_block()
    return told


@pytest.mark.parametrize("way", [pytest.param("compiled", marks=pytest.mark.slow), "flat"])
@pytest.mark.parametrize(("kind", "rules"), [ADAPTIVE[0], REFINED[0], REFINED[4]])
def test_rows_side_by_side_take_the_steps_of_the_slowest(kind: str, rules: dict[str, Any], way: str) -> None:
    talker = exact(kind)
    make: Callable[[MaskedProgram], BlockRunner] = compiled_by
    if way == "flat":
        make = lambda program: CapturedSteps(  # noqa: E731
            program, 3, FlatSteps(program, lambda function: function), captured_by_calling
        )
    assert blocks_of(make(program_of(talker, rules)), 3) == blocks_of(EagerRunner(program_of(talker, rules)), 3)


def begun(program: MaskedProgram, seed: int) -> tuple[Progress, BlockInWork]:
    """Take the first steps of a first block of two rows."""
    carry, generator = program.begin(2), torch.Generator().manual_seed(seed)
    anchors = torch.randn(2, 2, WIDTH, generator=generator, dtype=torch.float64)
    return program.start(anchors, carry, program.new_caches(2), Place(0, 0, program.num_slots(carry)), None)


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["mdm", "set_block", "coupled"]),
    seed=st.integers(0, 999),
    rule=st.one_of(st.builds(Unmasking, st.floats(0.05, 0.5)), st.builds(Unmasking, entropy_bound=st.floats(0.5, 6.0))),
    num_more=st.integers(1, 3),
)
def test_unmasking_steps_behind_the_last_one_change_nothing(
    kind: str, seed: int, rule: Unmasking, num_more: int
) -> None:
    program = program_of(exact(kind), {"unmasking": rule})
    with torch.no_grad():
        progress, work = begun(program, seed)
        step = 1
        while bool(progress.is_open):
            assert bool((progress.tokens == program.parts.mask_id).any()) and step < 8
            progress, step = program.unmask_more(progress, work, step, None), step + 1
        assert not bool((progress.tokens == program.parts.mask_id).any())
        for more in range(min(num_more, 8 - step)):
            after = program.unmask_more(progress, work, torch.tensor(step + more), None)
            assert torch.equal(after.tokens, progress.tokens) and torch.equal(after.order, progress.order)
            assert not bool(after.is_open)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), draft_steps=st.integers(1, 4), num_more=st.integers(1, 3))
def test_correcting_steps_behind_the_last_one_change_neither_tokens_nor_cache(
    seed: int, draft_steps: int, num_more: int
) -> None:
    program = program_of(exact("set_block"), {"refinement": Refinement(draft_steps)})
    with torch.no_grad():
        progress, work = begun(program, seed)
        step = draft_steps
        for step in range(draft_steps, draft_steps + 9):  # each step makes one more token of each row right
            before, progress = progress, program.correct(progress, work, step)
            assert bool(progress.is_open) != torch.equal(before.tokens, progress.tokens)
            if not bool(progress.is_open):
                break
        assert not bool(progress.is_open)
        kept = [layer.buffer.clone() for layer in work.opened]
        for more in range(num_more):
            after = program.correct(progress, work, torch.tensor(step + 1 + more))
            assert torch.equal(after.tokens, progress.tokens) and torch.equal(after.order, progress.order)
            assert not bool(after.is_open)
        assert all(torch.equal(layer.buffer, one) for layer, one in zip(work.opened, kept, strict=True))


@pytest.mark.parametrize(("kind", "rules"), [*ADAPTIVE, *REFINED])
@pytest.mark.parametrize("way", ["eager", "captured"])
def test_with_a_look_at_every_second_step_a_block_takes_one_more_at_most(
    kind: str, rules: dict[str, Any], way: str
) -> None:
    """As on a GPU. Steps of a draft that corrections follow are looked at one by one: another would count."""
    talker = exact(kind)
    each, second = (program_of(talker, rules, max_blocks=10) for _ in range(2))
    second.steps_per_look = 2
    extra = 0
    for one, other in zip(blocks_of(EagerRunner(each), 1, 10), blocks_of(WAYS[way](second), 1, 10), strict=True):
        assert one[:-2] == other[:-2], "tokens and order"
        assert other[-2] in (one[-2], one[-2] + 1)
        extra += other[-2] - one[-2]
    assert extra > 0, "some block ends at an odd step"


@pytest.mark.parametrize(
    ("rules", "num_reads"),
    [({"unmasking": Unmasking(1.0)}, 3), ({"refinement": Refinement(1)}, 4), ({"refinement": Refinement(2)}, 3)],
)
def test_the_flag_is_looked_at_behind_every_second_step(rules: dict[str, Any], num_reads: int) -> None:
    """Of 8 steps: unmasking behind 2, 4 and 6, corrections behind each second one and the last, if none is settled."""
    program = program_of(exact("set_block"), rules)
    program.steps_per_look = 2
    program.reveal = _never_filled(program.reveal)  # type: ignore[method-assign]
    program.correct = _never_settled(program.correct)  # type: ignore[method-assign]
    carry, anchors = program.begin(1), torch.zeros(1, 2, WIDTH, dtype=torch.float64)
    with torch.no_grad(), Operators() as operators:
        block = program(anchors, carry, program.new_caches(1), Place(0, 0, program.num_slots(carry)))
    assert block.num_forwards == 8
    assert operators.reads == {"_local_scalar_dense": num_reads}


def _never_filled(reveal: Callable[..., Progress]) -> Callable[..., Progress]:
    return lambda *inputs: reveal(*inputs)._replace(is_open=torch.ones((), dtype=torch.bool))


_never_settled = _never_filled


def meta_or_cpu(kind: str, rules: dict[str, Any], device: str) -> MaskedProgram:
    with torch.device(device):
        talker = build_talker(kind, 12, 10).eval()
    assert isinstance(talker, AnchoredTalker)
    program = program_of(talker, rules)
    program.looks_inside = False
    return program


@torch.no_grad()
def whole_block(program: BlockProgram) -> tuple[int, Operators]:
    carry, caches = program.begin(2), program.new_caches(2)
    anchors = torch.zeros(2, 2, WIDTH, device=program.device)
    with Operators() as operators:
        block = program(anchors, carry, caches, Place(0, 0, program.num_slots(carry)))
    return block.num_forwards, operators


@pytest.mark.parametrize(("kind", "rules"), [*ADAPTIVE, *REFINED])
def test_no_step_waits_for_the_device(kind: str, rules: dict[str, Any]) -> None:
    """The meta device holds no values: whatever reads one fails. Without looks all 8 steps are taken."""
    num_forwards, operators = whole_block(meta_or_cpu(kind, rules, "meta"))
    assert operators.reads == {}
    assert num_forwards == 8


@pytest.mark.parametrize(("kind", "rules"), [*ADAPTIVE, *REFINED])
@torch.no_grad()
def test_the_number_of_a_step_stays_on_the_device(kind: str, rules: dict[str, Any]) -> None:
    """As it does where steps are captured."""
    program, step = meta_or_cpu(kind, rules, "meta"), torch.ones((), dtype=torch.int64, device="meta")
    carry, anchors = program.begin(2), torch.zeros(2, 2, WIDTH, device="meta")
    progress, work = program.start(anchors, carry, program.new_caches(2), Place(0, 0, program.num_slots(carry)), None)
    with Operators() as operators:
        if program.unmasking.is_adaptive:
            program.unmask_more(progress, work, step, None)
        if program.refinement is not None:
            program.correct(progress, work, step)
    assert operators.reads == {} and operators.all.total() > 20


# Operators of one step of a block of 8 tokens by a network of 2 layers, as recorded.
MOST_OPERATORS = {"mdm": 89, "set_block": 103, "coupled": 255, "correct": 72}


@torch.no_grad()
def operators_per_step(program: MaskedProgram, take: Callable[[Progress, BlockInWork], Progress]) -> int:
    carry = program.begin(2)
    where = Place(0, 0, program.num_slots(carry))
    progress, work = program.start(torch.zeros(2, 2, WIDTH), carry, program.new_caches(2), where, None)
    with Operators() as operators:
        take(progress, work)
    return operators.all.total()


@pytest.mark.parametrize(("kind", "rules"), ADAPTIVE)
def test_an_unmasking_step_takes_no_more_operators_than_recorded(kind: str, rules: dict[str, Any]) -> None:
    program = meta_or_cpu(kind, rules, "cpu")
    total = operators_per_step(program, lambda progress, work: program.unmask_more(progress, work, 1, None))
    assert total <= MOST_OPERATORS[kind]


def test_a_correcting_step_takes_no_more_operators_than_recorded() -> None:
    program = meta_or_cpu("set_block", {"refinement": Refinement(1)}, "cpu")
    total = operators_per_step(program, lambda progress, work: program.correct(progress, work, 1))
    assert total <= MOST_OPERATORS["correct"]


def test_no_step_is_captured_on_a_cpu() -> None:
    talker = exact("set_block")
    runner = captured(program_of(talker, {"refinement": Refinement(1)}))
    with pytest.raises(UserError, match="CUDA device"):
        blocks_of(runner, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rules"), [ADAPTIVE[0], REFINED[3]])
def test_steps_of_fewer_kernels_say_the_same(kind: str, rules: dict[str, Any]) -> None:
    """The function stands for the kernels of a GPU."""
    talker = exact(kind)
    program = program_of(talker, rules)
    torch._dynamo.reset()
    source: BlockPasses = fused_steps(program, backend="aot_eager")
    runner = CapturedSteps(program, 2, source, captured_by_calling)
    assert blocks_of(runner, 2) == blocks_of(EagerRunner(program_of(talker, rules)), 2)
