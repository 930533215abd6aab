"""Every execution gives the reference's tokens, one reply at a time or many."""

import pytest
import torch

from experiments.jobs.decoding.batches import BatchThroughput
from experiments.jobs.decoding.executions import Captured, Compiled, Execution, Prepared, Static, Stepwise
from experiments.jobs.decoding.report.pictures import draw_throughput
from experiments.jobs.decoding.talkers import ban_eos, draw_text, draw_text_of_batch
from lightning_modules.adapters.lora import LoraSettings, add_adapter
from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.decoding import Decoding
from tests.lightning_modules.talker.conftest import in_steps, make_talker, row_of

CPU = torch.device("cpu")
KINDS = ("ntp", "mtp", "mdm", "set_block")


@pytest.mark.parametrize("execution", [Static(), Prepared(Static()), Prepared(Stepwise())], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_reference(kind: str, execution: Execution) -> None:
    """And the talker, which others use, too, is as it was."""
    talker = make_talker(kind).double()
    ban_eos({"it": talker})
    kinds = [type(module) for module in talker.modules()]
    text, decoding = draw_text(talker, 3, torch.float64, CPU), in_steps(talker.supported_steps[0])
    reference, runner = (one.prepare(talker, decoding, 3) for one in (Stepwise(), execution))
    assert reference is not None and runner is not None
    for _ in range(2):
        found = [(chunk.tokens.tolist(), chunk.num_forwards) for chunk in runner(text)]
        assert found == [(chunk.tokens.tolist(), chunk.num_forwards) for chunk in reference(text)]
    assert [chunk.tokens.tolist() for chunk in runner(text, 2)] == [tokens for tokens, _ in found[:2]]
    assert [chunk.is_last for chunk in reference(text, 2)] == [False, True]
    assert [type(module) for module in talker.modules()] == kinds


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_are_single_replies(kind: str) -> None:
    talker = make_talker(kind).double()
    ban_eos({"it": talker})
    decoding, text = in_steps(talker.supported_steps[0]), draw_text_of_batch(talker, 2, 3, torch.float64, CPU)
    batched = Static().prepare_batch(talker, decoding, 2, 3)
    single = Static().prepare_batch(talker, decoding, 2, 1)
    assert batched is not None and single is not None
    rows = batched(text)
    assert [len(row) for row in rows] == [2 * talker.block_size] * 3
    assert len({tuple(row.tolist()) for row in rows}) == 3, "each row has a text of its own"
    for row, found in enumerate(rows):
        assert torch.equal(found, single(row_of(text, row))[0])


def test_what_packed_talkers_share_is_packed_once() -> None:
    prepared, talker, other = Prepared(Static()), make_talker("ntp"), make_talker("mdm")
    other.backbone = talker.backbone
    one, its = (prepared._packed(each) for each in (talker, other))
    assert one is not None and its is not None and one.backbone is its.backbone is not talker.backbone
    assert one.head.weight is talker.head.weight, "weights are not copied"


def test_the_reference_decodes_in_the_precision_around_it() -> None:
    talker, found = make_talker("ntp"), []
    talker.head.register_forward_hook(lambda module, inputs, logits: found.append(logits.dtype))
    text = draw_text(talker, 3, torch.float32, CPU)
    for is_lower, autocast in ((False, False), (True, False), (False, True)):
        runner = Stepwise(autocast).prepare(talker, in_steps(talker.supported_steps[0]), 3)
        assert runner is not None
        with torch.autocast("cpu", torch.bfloat16, enabled=is_lower):
            next(runner(text))
        assert set(found) == {torch.bfloat16 if is_lower or autocast else torch.float32}
        found.clear()


def test_a_talker_with_adapters_is_not_packed() -> None:
    """The copy would speak under one adapter whichever is selected."""
    talker = make_talker("ntp")
    add_adapter(talker, "loud", LoraSettings(rank=2))
    assert Prepared(Static()).prepare(talker, in_steps(talker.supported_steps[0]), 3) is None


def test_executions_leave_out_what_they_do_not_know() -> None:
    mdm, vocalnet = make_talker("mdm"), make_talker("vocalnet")
    assert Static().prepare(vocalnet, in_steps(), 3) is None
    assert Captured().prepare(mdm, in_steps(4), 3) is None, "there is no GPU"
    assert Stepwise().prepare_batch(mdm, in_steps(4), 3, 2) is None


def test_without_a_compiler_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert Compiled().prepare(make_talker("mdm"), in_steps(4), 3) is None
    assert capsys.readouterr().out == "no C++ compiler (no-such-compiler): nothing is compiled\n"


def test_throughput_is_measured_by_size() -> None:
    talkers = {"mdm": make_talker("mdm")}
    ban_eos(talkers)
    decodings = {"mdm_4": Decoding("mdm", 4), "mdm_1": Decoding("mdm", 1)}
    settings = talkers, decodings, {"stepwise": Stepwise(), "static": Static()}, torch.float32, CPU, "wall"
    rates = BatchThroughput(["mdm_4", "mdm_1"], [4, 1], num_blocks=1, num_rounds=2).measure(*settings)
    assert {name: list(by_size) for name, by_size in rates.items()} == {
        "mdm_4, static": [1, 4],
        "mdm_1, static": [1, 4],
    }
    (axes,) = draw_throughput(rates).axes
    assert [container.lines[0].get_xdata().tolist() for container in axes.containers] == [[1, 4], [1, 4]]
    among = BatchThroughput(["mdm_4", "mdm_1"]).among(["ntp", "mdm_1"])
    assert among is not None and among.decodings == ["mdm_1"] and among.among(["ntp"]) is None
    short = BatchThroughput(["mdm_1"], [1, 4], num_blocks=1, num_rounds=1, time_budget_s=1e-9).measure(*settings)
    assert list(short["mdm_1, static"]) == [1]
    with pytest.raises(UserError, match="'ntp' is none of the decodings; name some of"):
        BatchThroughput(["ntp"]).measure(*settings)
    with pytest.raises(UserError, match="batches.sizes: give at least one"):
        BatchThroughput(sizes=[])
