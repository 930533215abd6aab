"""A captured block launches one graph, a step at a time another one, of no more kernels than its operators account for.

The bound of kernels is counted without a GPU: operators of the same block on the meta device, which takes the same
code as a GPU, without views, which run nothing. Two kernels for each of them cover those that need several (sorting,
products split along their inner dimension) and the few copies behind a graph; an operator that came into each layer, or
a block that ran more passes, would not fit.
"""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.jobs.decoding.counting import Launches, count_launches
from experiments.jobs.decoding.executions import Captured
from experiments.jobs.decoding.talkers import TalkerSizes, ban_eos, draw_talkers, draw_text
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.static.program import Place
from lightning_modules.talker.decoding.unmasking import Unmasking
from tests.lightning_modules.talker.conftest import WIDTH, build_talker, in_steps, make_talker

KERNELS_PER_OPERATOR = 2
MOST_LAUNCHES_BESIDE_GRAPHS = 16  # place, anchors, carry, flag, tokens and order of a block

CASES = [
    ("ntp", in_steps(8)),
    ("mdm", in_steps(4)),
    ("mdm", in_steps(1)),
    ("set_block", in_steps(1)),
    ("mdm", in_steps(8, unmasking=Unmasking(1.0))),
    ("set_block", in_steps(8, refinement=Refinement(1))),
]


class Computing(TorchDispatchMode):
    """Counts operators that are no views."""

    num_operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.num_operators += not func.is_view
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def operators_of_second_block(kind: str, decoding: Decoding) -> int:
    """Count those that run something in a block that takes all its steps and commits the one before."""
    with torch.device("meta"):
        talker = build_talker(kind, 12, 10).eval()
    assert isinstance(talker, AnchoredTalker)
    program = talker.block_program(3, decoding)
    program.looks_inside = False
    caches, carry, anchors = program.new_caches(1), program.begin(1), torch.zeros(1, 2, WIDTH, device="meta")
    block = program(anchors, carry, caches, Place(0, 0, program.num_cached))
    with Computing() as counted:
        program(anchors, block.carry, caches, Place(block.num_committed, 8, program.num_cached))
    return counted.num_operators


@pytest.mark.parametrize(("kind", "decoding"), CASES)
def test_a_block_computes_in_proportion_to_its_passes(kind: str, decoding: Decoding) -> None:
    """Without this the bound below could be met by whatever a block does."""
    assert decoding.num_steps is not None
    total = operators_of_second_block(kind, decoding)
    assert 20 * decoding.num_steps < total < 60 + 130 * decoding.num_steps


def launches_of(talker: Talker, decoding: Decoding, is_fused: bool = False) -> Launches:
    ban_eos({"it": talker})
    weight = next(talker.parameters())
    runner = Captured(is_fused).prepare(talker, decoding, 3)
    assert runner is not None
    text = draw_text(talker, 3, weight.dtype, weight.device)
    list(runner(text))  # captures
    return count_launches(lambda: runner(text), weight.device)


# Kernels of a block at the paper's size, as counted on an H200: experiments/RESULTS.md, "On a GPU".
MOST_KERNELS = {"ntp": (16, 1101), "mdm_4": (4, 350), "mdm_1": (1, 95)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MOST_KERNELS)
def test_a_block_of_the_papers_size_takes_no_more_kernels_than_recorded(name: str) -> None:
    sizes = TalkerSizes(2048, 8192, 32, num_codes=6561, hidden_size=2048)
    kind, (num_steps, most) = name.split("_")[0], MOST_KERNELS[name]
    talker = draw_talkers(sizes, {kind}, torch.bfloat16, torch.device("cuda"), 0)[kind]
    launches = launches_of(talker, Decoding(kind, num_steps))
    assert launches.num_kernels is not None and launches.num_kernels <= most


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch.compile, about TF32 and its own inputs
@pytest.mark.parametrize(("kind", "decoding"), CASES)
def test_a_captured_block_launches_few_graphs_of_few_kernels(kind: str, decoding: Decoding) -> None:
    plain, fused = (launches_of(make_talker(kind).to("cuda"), decoding, is_fused) for is_fused in (False, True))
    assert decoding.num_steps is not None
    most_graphs = 1 if decoding.unmasking is None and decoding.refinement is None else decoding.num_steps
    for one in (plain, fused):
        assert one.num_kernels is not None and one.num_launches is not None
        assert one.num_launches <= most_graphs + MOST_LAUNCHES_BESIDE_GRAPHS
    assert plain.num_kernels <= KERNELS_PER_OPERATOR * operators_of_second_block(kind, decoding)
    assert fused.num_kernels < plain.num_kernels
