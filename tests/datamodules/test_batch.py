"""Batches keep their examples, whatever they are padded with, and travel whole."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

from datamodules.batch import SMALL_BYTES, SpokenExample, collate


@given(sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_padding_can_be_undone(sizes: list[tuple[int, int]]) -> None:
    examples = [
        SpokenExample(f"{i}", f"Reply {i}.", query=torch.rand(samples), units=torch.randint(1, 9, (tokens,)))
        for i, (samples, tokens) in enumerate(sizes)
    ]
    batch = collate(examples)
    assert len(batch) == len(examples)
    assert batch.query.dtype == torch.float32
    assert batch.units.dtype == batch.query_lengths.dtype == batch.unit_lengths.dtype == torch.int64
    for row, example in enumerate(examples):
        assert torch.equal(batch.query[row, : batch.query_lengths[row]], example.query)
        assert torch.equal(batch.units[row, : batch.unit_lengths[row]], example.units)
        assert not batch.query[row, batch.query_lengths[row] :].any()
        assert not batch.units[row, batch.unit_lengths[row] :].any()


def test_fields_that_are_absent_stay_absent() -> None:
    batch = collate([SpokenExample("a", "Yes.", transcript="Really?")])
    assert (batch.ids, batch.reply_texts, batch.transcripts) == (["a"], ["Yes."], ["Really?"])
    assert batch.query is batch.query_lengths is batch.units is batch.unit_lengths is batch.reply is None


def test_a_batch_comes_whole_to_another_process() -> None:
    examples = [SpokenExample(f"{i}", "Yes.", torch.rand(20_000 * i), torch.arange(3 + i)) for i in (1, 2)]
    batch = collate(examples)
    assert batch.query.nbytes > SMALL_BYTES > batch.units.nbytes
    (found,) = DataLoader([batch], batch_size=None, num_workers=1)
    assert vars(found).keys() == vars(batch).keys()
    for name, value in vars(batch).items():
        same = (
            torch.equal(value, getattr(found, name)) if isinstance(value, torch.Tensor) else value == vars(found)[name]
        )
        assert same, name
    assert found.units.add_(1)[0, 0] == 1, "it can be written to"


def test_lightning_moves_tensors_and_keeps_texts_and_the_lengths_that_are_read_on_the_host() -> None:
    batch = collate([SpokenExample("a", "Yes.", torch.rand(3), torch.tensor([1, 2]), torch.rand(5), "Really?")])
    moved = move_data_to_device(batch, torch.device("meta"))
    assert (moved.ids, moved.reply_texts, moved.transcripts) == (batch.ids, batch.reply_texts, batch.transcripts)
    devices = {name: one.device.type for name, one in vars(moved).items() if isinstance(one, torch.Tensor)}
    assert len(devices) == 6
    on_host = {devices.pop(name) for name in ("query_lengths", "unit_lengths")}
    assert on_host == {"cpu"}, "prompts and losses have to know on the host how much they read"
    assert set(devices.values()) == {"meta"}
    assert batch.query.device.type == "cpu"
