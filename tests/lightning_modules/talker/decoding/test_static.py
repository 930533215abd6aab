"""Static block decoding says what stepwise decoding says, in as many passes, and no block waits for its device."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.static.program import BlockProgram, Place
from lightning_modules.talker.decoding.streaming import SpeechChunk, states_of_row
from lightning_modules.talker.decoding.unmasking import Unmasking
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.decoding_network import DecodingNetwork
from tests.lightning_modules.talker.conftest import build_talker, in_steps, make_talker, make_text, row_of

SAMPLED = {"sampler": TokenSampler(0.8, 5), "seed": 3}
CASES: list[tuple[str, int | None, dict[str, Any]]] = [
    ("ntp", None, {}),
    ("ntp", None, SAMPLED),
    *(("mtp", steps, {}) for steps in (8, 4, 3, 2)),
    ("mtp", 3, SAMPLED),
    *((kind, steps, {}) for kind in ("mdm", "set_block") for steps in (8, 4, 2, 1)),
    *((kind, 4, SAMPLED) for kind in ("mdm", "set_block")),
    *((kind, 8, {"unmasking": Unmasking(confidence_threshold=0.3)}) for kind in ("mdm", "set_block")),
    *((kind, 2, {"fused_commit": False}) for kind in ("mdm", "set_block")),
    *((kind, steps, {}) for kind in ("coupled", "set_block_coupled") for steps in (4, 1)),
    ("coupled", 8, {"unmasking": Unmasking(confidence_threshold=0.3)}),
    *((kind, 8, {"unmasking": Unmasking(entropy_bound=3.0)}) for kind in ("mdm", "coupled")),
    ("set_block_coupled", 8, {"refinement": Refinement(2)}),
    ("set_block", 8, {"refinement": Refinement(2)}),
    ("set_block", 8, {"refinement": Refinement(1), "unmasking": Unmasking(confidence_threshold=0.3)}),
    ("set_block", 4, {"refinement": Refinement(1), "fused_commit": False}),
]
ONE_FUNCTION = [("ntp", None), ("mtp", 4), ("mdm", 4), ("mdm", 1), ("set_block", 4), ("set_block", 1), ("coupled", 1)]


EOS_GAIN = {"ntp": 1.2, "mtp": 1.2, "mdm": 2.0, "set_block": 1.4, "coupled": 3.0, "set_block_coupled": 1.6}


def exact(kind: str) -> AnchoredTalker:
    talker = make_talker(kind).double()
    assert isinstance(talker, AnchoredTalker)
    return talker


def as_float64(text: TextStates) -> TextStates:
    return TextStates(text.hidden.double(), text.embedding.double(), text.lengths)


def said(chunks: list[SpeechChunk]) -> list[int]:
    return torch.cat([chunk.tokens for chunk in chunks]).tolist()


@pytest.mark.parametrize(("kind", "num_steps", "rules"), CASES)
def test_it_says_what_stepwise_decoding_says(kind: str, num_steps: int | None, rules: dict[str, Any]) -> None:
    talker, text, decoding = exact(kind), as_float64(make_text([7])), in_steps(num_steps, **rules)
    static = list(talker.stream(states_of_row(text, 0), 5, decoding))
    stepwise = list(talker.stream_stepwise(states_of_row(text, 0), 5, decoding))
    assert len(static) > 1, "one block alone would not test the cache"
    for one, other in zip(static, stepwise, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert (one.num_forwards, one.ended, one.is_last) == (other.num_forwards, other.ended, other.is_last)
        assert (one.order is None) == (other.order is None)
        if one.order is not None and other.order is not None:
            assert one.order.tolist() == other.order.tolist()


@pytest.mark.parametrize(("kind", "num_steps", "rules"), CASES)
def test_each_reply_of_a_batch_is_what_it_is_alone(kind: str, num_steps: int | None, rules: dict[str, Any]) -> None:
    """Texts, and so replies, of different lengths: some rows end blocks before others."""
    talker, decoding = exact(kind), in_steps(num_steps, **rules)
    text = as_float64(make_text([7, 2, 9, 1, 5]))
    with torch.no_grad():  # an end in any block
        talker.head.weight[talker.vocabulary.eos_id] *= EOS_GAIN[kind]
    together = talker.decode_batch(text, 6, decoding)
    lengths = set()
    for row, reply in enumerate(together):
        alone = list(talker.stream(states_of_row(row_of(text, row), 0), 6, decoding))
        assert reply.tokens.tolist() == said(alone)
        assert reply.ended == alone[-1].ended and len(reply.num_forwards) == len(alone)
        if all(chunk.order is not None for chunk in alone):
            orders = [chunk.order for chunk in alone if chunk.order is not None]
            assert reply.order is not None and reply.order.tolist() == torch.cat(orders).tolist()
        lengths.add(len(alone))
    assert len(lengths) > 1, "rows that end together would not test that others go on"


class Operators(TorchDispatchMode):
    """Counts operators, and those through which the host reads a value."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.reads = Counter[str](), Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.all[name] += 1
        has_bool_index = name in ("index", "index_put_") and any(
            getattr(one, "dtype", None) == torch.bool for one in tree_leaves(args[1:2])
        )
        fills_from_device = func is torch.ops.aten.masked_fill.Tensor
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal") or has_bool_index or fills_from_device:
            self.reads[name] += 1
        return func(*args, **(kwargs or {}))


def program_of(kind: str, num_steps: int | None, device: str) -> BlockProgram:
    with torch.device(device):
        talker = build_talker(kind, 12, 10).eval()
    assert isinstance(talker, AnchoredTalker)
    decoding = Decoding("it", num_steps or talker.supported_steps[0])
    program = talker.block_program(4, decoding)
    program.looks_inside = False
    return program


@torch.no_grad()
def second_block(program: BlockProgram, batch_size: int = 2) -> tuple[int, Operators]:
    """Decode two blocks; give the passes and the operators of the second one, which commits the first."""
    caches, carry = program.new_caches(batch_size), program.begin(batch_size)
    anchors = torch.zeros(batch_size, 2, 32, device=program.device)
    block = program(anchors, carry, caches, Place(0, 0, program.num_slots(carry)))
    num_slots = block.num_committed + program.num_slots(block.carry)
    with Operators() as operators:
        block = program(anchors, block.carry, caches, Place(block.num_committed, 8, num_slots))
    return block.num_forwards, operators


@pytest.mark.parametrize(("kind", "num_steps"), ONE_FUNCTION)
def test_nothing_in_a_block_waits_for_the_device(kind: str, num_steps: int | None) -> None:
    """The meta device holds no values: whatever reads one fails."""
    num_forwards, operators = second_block(program_of(kind, num_steps, "meta"))
    assert operators.reads == {}
    assert num_forwards == (num_steps or 8)


# Operators of a block of 8 tokens by a network of 2 layers, as recorded; one more per layer or pass exceeds them.
MOST_OPERATORS = {
    ("ntp", None): 529,
    ("mtp", 4): 457,
    ("mdm", 4): 340,
    ("mdm", 1): 109,
    ("set_block", 4): 347,
    ("set_block", 1): 113,
    ("coupled", 1): 230,
}


@pytest.mark.parametrize(("kind", "num_steps"), ONE_FUNCTION)
def test_a_block_takes_no_more_operators_than_recorded(kind: str, num_steps: int | None) -> None:
    _, operators = second_block(program_of(kind, num_steps, "cpu"))
    assert operators.all.total() <= MOST_OPERATORS[kind, num_steps]


@pytest.mark.parametrize(("kind", "num_steps"), ONE_FUNCTION)
def test_a_block_runs_the_network_once_per_step(
    kind: str, num_steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0
    whole = DecodingNetwork.__call__

    def count(network: DecodingNetwork, *arguments: Any) -> Tensor:
        nonlocal passes
        passes += 1
        return whole(network, *arguments)

    monkeypatch.setattr(DecodingNetwork, "__call__", count)
    program = program_of(kind, num_steps, "cpu")
    second_block(program)
    assert passes == 2 * len(program.networks) * program.num_steps
