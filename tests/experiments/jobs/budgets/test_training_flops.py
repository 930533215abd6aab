"""What training costs: a property of shapes, not of weights, values or the machine."""

import pytest
import torch

from datamodules.batch import SpokenBatch
from experiments.jobs.budgets.training_flops import count_flops_per_reply
from lightning_modules.errors import UserError
from tests.lightning_modules.test_speech_llm import make_batch, make_llm


def with_units(batch: SpokenBatch, length: int) -> SpokenBatch:
    batch.units, batch.unit_lengths = torch.zeros(3, length, dtype=torch.int64), torch.full((3,), length)
    return batch


def test_batches_add_up_and_weights_do_not_matter() -> None:
    llm = make_llm("ntp", "mdm")
    short, long = with_units(make_batch(0), 16), with_units(make_batch(1), 32)
    of_short, of_long = count_flops_per_reply(llm, [short]), count_flops_per_reply(llm, [long])
    both = count_flops_per_reply(llm, [short, long])
    for name in ("ntp", "mdm"):
        assert both[name] == pytest.approx((of_short[name] + of_long[name]) / 2, rel=0.01), "masks differ"
        assert of_long[name] > 1.5 * of_short[name]
    with torch.no_grad():
        for parameter in llm.talkers.parameters():
            parameter.zero_()
    assert count_flops_per_reply(llm, [short]) == of_short
    assert all(one.grad is None for one in llm.parameters()) and not llm.talkers["ntp"].training


def test_it_is_at_least_what_the_head_alone_takes() -> None:
    """The head multiplies each predicted position by its weights, and twice more to go back."""
    llm = make_llm("ntp")
    head = llm.talkers["ntp"].head.weight  # type: ignore[union-attr]
    found = count_flops_per_reply(llm, [with_units(make_batch(0), 32)])["ntp"]
    weights = sum(one.numel() for one in llm.talkers["ntp"].parameters() if one.dim() == 2)
    assert 3 * 2 * 32 * head.numel() < found < 3 * 2 * 5 * 32 * weights


def test_without_batches_nothing_is_counted() -> None:
    with pytest.raises(UserError, match="there is no batch to count"):
        count_flops_per_reply(make_llm("ntp"), [])
    batch = make_batch(0)
    batch.units = None
    with pytest.raises(UserError, match="add units"):
        count_flops_per_reply(make_llm("ntp"), [batch])
