"""Steps that are captured as CUDA graphs say what they say as they are, and wait for the host at looks alone."""

from typing import Any

import pytest
import torch

from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.decoding.static.decoder import StaticDecoder
from lightning_modules.talker.decoding.static.masked_tokens import MaskedProgram
from lightning_modules.talker.decoding.static.runners import EagerRunner
from lightning_modules.talker.decoding.static.steps.captured_steps import CapturedSteps, captured
from lightning_modules.talker.decoding.unmasking import Unmasking
from tests.lightning_modules.cuda_syncs import syncs_forbidden
from tests.lightning_modules.talker.conftest import WIDTH
from tests.lightning_modules.talker.decoding.test_static import Operators
from tests.lightning_modules.talker.decoding.test_steps import ADAPTIVE, CASES, REFINED, blocks_of, exact, program_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def program_on_gpu(kind: str, rules: dict[str, Any]) -> MaskedProgram:
    talker = exact(kind).to("cuda")
    assert isinstance(talker, AnchoredTalker)
    return program_of(talker, rules, max_blocks=12)


def captured_steps(program: MaskedProgram, is_fused: bool = False) -> CapturedSteps:
    runner = captured(program, 2, is_fused)
    assert isinstance(runner, CapturedSteps)
    return runner


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch.compile, about TF32 and its own inputs
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize(("kind", "rules"), CASES)
def test_captured_steps_say_the_same(kind: str, rules: dict[str, Any], is_fused: bool) -> None:
    """Ten blocks cross from one length of attention into the next; a second decoding finds graphs and caches."""
    program, runner = program_on_gpu(kind, rules), captured_steps(program_on_gpu(kind, rules), is_fused)
    assert program.steps_per_look == 2
    expected = blocks_of(EagerRunner(program), 2, 10)
    for _ in range(2):
        assert blocks_of(runner, 2, 10) == expected, "passes and slots, too"


@pytest.mark.parametrize(("kind", "rules"), [*ADAPTIVE, *REFINED])
def test_without_a_look_no_step_waits_for_the_host(kind: str, rules: dict[str, Any]) -> None:
    runner = captured_steps(program_on_gpu(kind, rules))
    runner.captured.looks_inside = False
    blocks_of(runner, 2, 10)
    decoder, anchors = StaticDecoder(runner, 2), torch.zeros(2, 2, WIDTH, dtype=torch.float64, device="cuda")
    with syncs_forbidden():
        for _ in range(3):
            decoder.decode(anchors)


@pytest.mark.parametrize(("kind", "rules"), [("mdm", {"unmasking": Unmasking(1.0)}), REFINED[0]])
def test_the_host_looks_behind_every_second_step(kind: str, rules: dict[str, Any]) -> None:
    """Unmasking that is never sure behind 2, 4 and 6 of 8 steps; corrections behind each second one and the last."""
    runner = captured_steps(program_on_gpu(kind, rules))
    blocks_of(runner, 2)
    decoder, anchors = StaticDecoder(runner, 2), torch.zeros(2, 2, WIDTH, dtype=torch.float64, device="cuda")
    for _ in range(3):
        with torch.no_grad(), Operators() as operators:
            num_forwards = decoder.decode(anchors).num_forwards
        num_corrections = num_forwards - 1
        num_looks = 3 if "unmasking" in rules else (num_corrections + 1) // 2
        assert operators.reads == {"_local_scalar_dense": num_looks}
