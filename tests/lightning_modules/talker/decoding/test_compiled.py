"""Blocks that are compiled: what is compiled, and when it is compiled again."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.static.compiled import CompiledBlocks, CompiledFunction
from lightning_modules.talker.decoding.static.runners import EagerRunner
from lightning_modules.talker.decoding.streaming import states_of_row
from lightning_modules.talker.network.packed_linear import WrittenProduct
from lightning_modules.talker.network.prepared import prepare_for_decoding
from tests.lightning_modules.talker.conftest import make_talker, make_text


def as_traced(graph: fx.GraphModule, inputs: Any) -> fx.GraphModule:
    return graph


def make_compiled(kind: str) -> tuple[AnchoredTalker, CompiledBlocks]:
    talker = make_talker(kind).double()
    assert isinstance(talker, AnchoredTalker)
    talker.new_runner = blocks = CompiledBlocks(as_traced)
    return talker, blocks


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


def test_what_is_no_single_function_and_layers_with_more_to_them_run_as_they_are() -> None:
    talker, blocks = make_compiled("set_block")
    refined = Decoding("it", 4, refinement=Refinement(draft_steps=2))
    assert said(talker, refined) == said_as_it_is(talker, refined)

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


def test_talkers_with_a_coupling_run_as_they_are() -> None:
    talker, blocks = make_compiled("set_block_coupled")
    assert said(talker, Decoding("it", 2)) == said_as_it_is(talker, Decoding("it", 2)) and not blocks._kept


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
def test_written_products_are_those_of_a_linear_layer(num_rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, 6, generator=generator, dtype=dtype) for size in (5, num_rows))
    product = WrittenProduct(weight)
    torch.testing.assert_close(product(x), x @ weight.T)
    torch.testing.assert_close(product(x[None]), (x @ weight.T)[None])
    y = torch.randn(num_rows, 5, generator=generator, dtype=dtype)
    torch.testing.assert_close(product.plus(y, x), y + x @ weight.T)


@pytest.mark.parametrize(("kind", "num_steps"), [("ntp", 8), ("mdm", 2)])
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
