"""Blocks that are compiled: what is compiled, and when it is compiled again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.static.compiled import CompiledBlocks, CompiledFunction, CompiledRunner
from lightning_modules.talker.decoding.static.decoder import StaticDecoder
from lightning_modules.talker.decoding.static.runners import EagerRunner
from lightning_modules.talker.decoding.streaming import AnchorReader, states_of_row
from lightning_modules.talker.decoding.unmasking import Unmasking
from lightning_modules.talker.network.packed_linear import WrittenProduct
from lightning_modules.talker.network.prepared import prepare_for_decoding
from tests.lightning_modules.talker.conftest import WIDTH, make_talker, make_text

BOUND = Unmasking(entropy_bound=3.0)


def kind_of(tensor: Tensor) -> tuple[Any, ...]:
    strides = [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    return tensor.dtype, tensor.shape, strides


def as_traced(graph: fx.GraphModule, inputs: Any) -> Callable[..., tuple[Tensor, ...]]:
    """Stand for compiled code, which takes the memory of any input for what it was compiled for."""
    compiled_for = list(map(kind_of, inputs))

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        assert list(map(kind_of, tensors)) == compiled_for
        return graph(*tensors)

    return run


def make_compiled(kind: str) -> tuple[AnchoredTalker, CompiledBlocks]:
    talker = make_talker(kind).double()
    assert isinstance(talker, AnchoredTalker)
    talker.new_runner = blocks = CompiledBlocks(as_traced)
    return talker, blocks


def count_compiled(runner: CompiledRunner) -> list[int]:
    return [len(one.compiled) for one in runner.functions]


def said(talker: AnchoredTalker, decoding: Decoding) -> list[tuple[list[int], int]]:
    text = make_text([5])
    states = [type(one)(one.hidden.double(), one.embedding.double()) for one in states_of_row(text, 0)]
    return [(chunk.tokens.tolist(), chunk.num_forwards) for chunk in talker.stream(states, 4, decoding)]


def said_as_it_is(talker: AnchoredTalker, decoding: Decoding) -> list[tuple[list[int], int]]:
    compiled, talker.new_runner = talker.new_runner, EagerRunner
    found = said(talker, decoding)
    talker.new_runner = compiled
    return found


@pytest.mark.parametrize(("kind", "num_steps"), [("ntp", 8), ("set_block", 2)])
def test_a_talker_is_compiled_once_for_as_long_as_its_weights_stay(kind: str, num_steps: int) -> None:
    talker, blocks = make_compiled(kind)
    decoding = Decoding("it", num_steps)
    expected = said_as_it_is(talker, decoding)
    assert said(talker, decoding) == expected
    (first,) = (runner for runner, _ in blocks._kept.values())
    assert said(talker, decoding) == expected
    assert [runner for runner, _ in blocks._kept.values()] == [first]
    with torch.no_grad():
        talker.head.weight.copy_(talker.head.weight.flip(0).clone())
    changed = said_as_it_is(talker, decoding)
    assert changed != expected and said(talker, decoding) == changed


def test_layers_with_more_to_them_run_as_they_are() -> None:
    talker, blocks = make_compiled("set_block")

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1.0

    decoding = Decoding("it", 2)
    out = talker.backbone.layers[0].attention_out
    adapted = Adapted(out.in_features, out.out_features, bias=False).double()
    talker.backbone.layers[0].attention_out = adapted
    assert said(talker, decoding) == said_as_it_is(talker, decoding) and not blocks._kept
    talker.backbone.layers[0].attention_out = out
    assert said(talker, decoding) and blocks._kept, "plain layers again"


@pytest.mark.parametrize(
    ("kind", "num_steps"),
    [("coupled", 4), ("set_block_coupled", 1)]
    + [pytest.param("set_block_coupled", steps, marks=pytest.mark.slow) for steps in (8, 4, 2)],
)
def test_coupled_tokens_are_compiled_pass_by_pass(kind: str, num_steps: int) -> None:
    talker, blocks = make_compiled(kind)
    decoding = Decoding("it", num_steps)
    assert said(talker, decoding) == said_as_it_is(talker, decoding)
    ((runner, _),) = blocks._kept.values()
    of_network, of_coupling = runner.functions
    assert len(of_coupling.compiled) == 1 and len(of_network.compiled) <= 3, "no more for more steps"


def test_packed_layers_are_compiled_too() -> None:
    talker, blocks = make_compiled("mdm")
    prepare_for_decoding(talker)
    assert said(talker, Decoding("it", 2)) == said_as_it_is(talker, Decoding("it", 2)) and blocks._kept


def test_a_function_that_looks_at_values_is_no_graph() -> None:
    def look(x: Tensor) -> tuple[tuple[Tensor, ...], None]:
        return (x + 1 if bool(x.sum() > 0) else x,), None

    with pytest.raises(Exception, match="data-dependent|DataDependent|item"):
        CompiledFunction(look, as_traced)(torch.ones(2))


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("has_bias", [False, True])
def test_written_products_are_those_of_a_linear_layer(num_rows: int, dtype: torch.dtype, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, 6, generator=generator, dtype=dtype) for size in (5, num_rows))
    bias = torch.randn(5, generator=generator, dtype=dtype) if has_bias else None
    product, expected = WrittenProduct(weight, bias), torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(product(x), expected)
    torch.testing.assert_close(product(x[None]), expected[None])
    y = torch.randn(num_rows, 5, generator=generator, dtype=dtype)
    torch.testing.assert_close(product.plus(y, x), y + expected)


@pytest.mark.parametrize(("kind", "num_steps"), [("ntp", 8), ("mdm", 2), ("coupled", 2)])
def test_under_autocast_what_is_compiled_computes_in_its_precision(kind: str, num_steps: int) -> None:
    talker = make_talker(kind)
    assert isinstance(talker, AnchoredTalker)
    talker.new_runner = blocks = CompiledBlocks(as_traced)
    decoding, text = Decoding("it", num_steps), states_of_row(make_text([5]), 0)
    spoken = []
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            (chunk, *_) = talker.stream(text, 1, decoding)
            spoken.append(chunk.tokens.tolist())
            talker.new_runner = EagerRunner
    ((runner, _),) = blocks._kept.values()
    assert runner.program.dtype == torch.bfloat16
    agreeing = sum(a == b for a, b in zip(*spoken, strict=False))
    assert agreeing >= 0.5 * max(map(len, spoken)), "rounding may change a token, and what comes behind it"


def test_a_tensor_of_another_precision_is_another_function() -> None:
    function = CompiledFunction(lambda x: ((x + x,), None), as_traced)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        (twice,), _ = function(torch.ones(2, dtype=dtype))
        assert twice.dtype == dtype and twice.tolist() == [2.0, 2.0]
    assert len(function.compiled) == 2


@pytest.mark.parametrize(("kind", "num_steps"), [("ntp", 8), ("set_block", 1), ("set_block_coupled", 1)])
def test_under_autocast_text_that_has_ended_is_read_by_the_same_function(kind: str, num_steps: int) -> None:
    """Projected text has the lower precision, "no text" behind its end has not."""
    talker = make_talker(kind)
    assert isinstance(talker, AnchoredTalker)
    decoding, text = Decoding("it", num_steps), states_of_row(make_text([2]), 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        runner = CompiledBlocks(as_traced)(talker.block_program(4, decoding))
        assert isinstance(runner, CompiledRunner)
        runner.program.looks_inside, num_compiled = False, count_compiled(runner)
        decoder, reader = StaticDecoder(runner), AnchorReader(talker.anchors, text)
        precisions = set()
        for _ in range(4):
            anchors = reader.next_block()
            precisions.add(anchors.dtype)
            decoder.decode_block(anchors)
    assert len(precisions) == 2 and count_compiled(runner) == num_compiled


@pytest.mark.parametrize(
    ("kind", "num_steps", "rules"),
    [
        ("ntp", 8, {}),
        ("set_block_coupled", 2, {}),
        ("set_block", 8, {"refinement": Refinement(1)}),
        pytest.param("mdm", 8, {"unmasking": Unmasking(0.3)}, marks=pytest.mark.slow),
        pytest.param("set_block_coupled", 8, {"refinement": Refinement(2), "unmasking": BOUND}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("fused_commit", [True, False])
@torch.no_grad()
def test_no_reply_is_compiled_in_its_midst(
    kind: str, num_steps: int, rules: dict[str, Any], fused_commit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corrected block commits itself, or does not; what comes behind either is compiled ahead."""
    monkeypatch.setattr("lightning_modules.talker.decoding.static.compiled.MIN_KEYS", 16)
    monkeypatch.setattr("lightning_modules.talker.decoding.static.runners.MIN_BUCKET", 16)
    talker, blocks = make_compiled(kind)
    decoding = Decoding("it", num_steps, fused_commit=fused_commit, **rules)
    runner = blocks(talker.block_program(8, decoding))
    assert isinstance(runner, CompiledRunner)
    runner.program.looks_inside, num_compiled = not runner.program.is_one_function, count_compiled(runner)
    decoder, generator = StaticDecoder(runner), torch.Generator().manual_seed(0)
    lengths = set()
    for _ in range(8):
        decoder.decode(torch.randn(1, 2, WIDTH, generator=generator, dtype=torch.float64))
        lengths.add(runner.num_keys(decoder.start))
        decoder.close_block()
    assert len(lengths) > 2 and count_compiled(runner) == num_compiled
