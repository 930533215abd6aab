"""A training step of a talker never reads back from the device: the host runs ahead, and a GPU does not idle.

The meta device stands for the device. It holds no values, so that whatever reads one fails, and the operations through
which a value reaches the host are counted on their way.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.talker.base import TalkerOutput
from lightning_modules.talker.masked.distillation import SelfDistillation
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masking.noisy_blocks import DrawnBlocks
from lightning_modules.talker.masking.schemes import BlockBernoulli, GlobalBernoulli, HierarchicalBlockwise
from lightning_modules.talker.network.anchors import TextStates
from tests.lightning_modules.cuda_syncs import syncs_forbidden
from tests.lightning_modules.talker.conftest import NUM_CODES, build_talker, make_talker, make_text

READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")
DISTILLATIONS = {
    "plain": None,
    "distilled": SelfDistillation(num_steps=4, certainty_weight=0.1),
    "distilled on policy": SelfDistillation(num_steps=4, on_policy_share=0.7),
}


class ReadsOfADevice(TorchDispatchMode):
    """Counts the operations that give the host a value, or need one, of a tensor on the device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.found = device, Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(one.device.type == self.device for one in tensors):
            name = func.overloadpacket.__name__
            indices = tree_leaves(args[1:2]) if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
            to_host = name in ("_to_copy", "copy_") and self._is_to_host(name, args, kwargs or {})
            if name in READS or to_host or any(getattr(one, "dtype", None) == torch.bool for one in indices):
                self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def _is_to_host(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        target = kwargs.get("device") or args[0].device if name == "_to_copy" else args[0].device
        return torch.device(target).type == "cpu"


def step(kind: str, how: SelfDistillation | None, device: str, **settings: Any) -> Callable[[], TalkerOutput]:
    """Prepare a training step, forward and backward."""
    if device == "meta":
        with torch.device(device):
            talker = build_talker(kind, 12, 10).train()
    else:
        talker = make_talker(kind).to(device).train()
    for name, value in settings.items():
        setattr(talker, name, value)
    teacher = copy.deepcopy(talker).requires_grad_(False).eval()
    text = make_text([5, 2, 9])
    text = TextStates(text.hidden.to(device), text.embedding.to(device), text.lengths)
    units = torch.randint(0, NUM_CODES, (3, 20), generator=torch.Generator().manual_seed(1)).to(device)

    def run() -> TalkerOutput:
        lengths, generator = torch.tensor([20, 7, 16]), torch.Generator().manual_seed(0)
        if how is None:
            output = talker(text, units, lengths, generator)
        else:
            assert isinstance(talker, MaskedTalker) and isinstance(teacher, MaskedTalker)
            output = talker.distil(teacher, talker.corrupt(text, units, lengths, generator), how, generator)
        output.loss.backward()
        return output

    return run


MASKINGS = {"global": GlobalBernoulli(), "by block": BlockBernoulli(), "hierarchical": HierarchicalBlockwise()}
MASKED = [
    (kind, how, {"masking": masking, "num_noisy_copies": 2, "complementary_masks": True})
    for kind in ("mdm", "set_block")
    for how in DISTILLATIONS
    for masking in MASKINGS.values()
]
MASKED += [("coupled", how, {}) for how in DISTILLATIONS]
MASKED += [("mdm", how, {"clean_context": False}) for how in DISTILLATIONS]
MASKED += [("set_block", how, {"noisy_blocks": DrawnBlocks(4, 0.3, 0.3)}) for how in DISTILLATIONS]
STEPS: list[tuple[str, str, dict[str, Any]]] = [("ntp", "plain", {}), ("mtp", "plain", {}), *MASKED]


@pytest.mark.parametrize(("kind", "how", "settings"), STEPS)
def test_a_training_step_reads_nothing_back(kind: str, how: str, settings: dict[str, Any]) -> None:
    run = step(kind, DISTILLATIONS[how], "meta", **settings)
    with ReadsOfADevice("meta") as reads:
        output = run()
    assert reads.found == {}
    assert output.loss.is_meta and not output.num_scored_tokens.is_meta and int(output.num_scored_tokens) > 0


def test_what_reads_back_is_counted() -> None:
    with ReadsOfADevice("cpu") as reads:
        values = torch.arange(4)
        assert int(values.sum()) == 6
        assert len(values.nonzero()) == 3
        assert len(values[values > 1]) == 2
    expected = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.index.Tensor")
    assert reads.found == dict.fromkeys(expected, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("kind", "how", "settings"), STEPS)
def test_a_gpu_is_not_waited_for(kind: str, how: str, settings: dict[str, Any]) -> None:
    run = step(kind, DISTILLATIONS[how], "cuda", **settings)
    run()  # libraries wait when they are first used
    with syncs_forbidden():
        run()
