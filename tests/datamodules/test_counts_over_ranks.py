"""What was left out is counted over all ranks, on any number of them before and after a resume."""

import logging
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.batch import SpokenBatch
from datamodules.conversion.corpus_converter import CorpusConverter
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from tests.datamodules.tiny_corpus import write_split

# In a process of several threads, which is all right here: the children use no thread of the parent.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    write_split(tmp_path / "loose", "train", 8)
    index = tmp_path / "loose/spoken_examples/train.json"
    CorpusConverter(str(index), [str(tmp_path / "loose")], num_workers=0).run(tmp_path / "set")
    return str(tmp_path / "set")


def make_data(corpus: str, rank: int, world_size: int) -> ShardedDialogueDataModule:
    data = ShardedDialogueDataModule({"one": ShardedSet(corpus)}, max_skipped_share=1.0)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)  # type: ignore[assignment]
    return data


def read(data: ShardedDialogueDataModule, num_whole: int, num_skipped: int) -> None:
    names = [str(number) for number in range(num_whole)]
    batch = SpokenBatch(names, names, skipped=["broken"] * num_skipped)
    data.on_before_batch_transfer(batch, 0)


def work(corpus: str, folder: Path, rank: int, state: dict[str, Any]) -> None:
    """Read on one of two ranks after a resume, and save what a checkpoint would hold."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    data = make_data(corpus, rank, 2)
    data.load_state_dict(state)
    data.setup("fit")
    data.train_dataloader()
    read(data, 10 * (rank + 1), rank + 1)
    torch.save(data.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_a_checkpoint_holds_the_counts_of_all_ranks(corpus: str, tmp_path: Path) -> None:
    first = make_data(corpus, 0, 1)
    first.setup("fit")
    first.train_dataloader()
    read(first, 100, 5)
    context = multiprocessing.get_context("fork")
    state = first.state_dict()
    ranks = [context.Process(target=work, args=(corpus, tmp_path, rank, state), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for state in saved:
        assert (state["num_read"], state["num_skipped"]) == (105 + 11 + 22, 5 + 1 + 2)
    last = make_data(corpus, 0, 1)
    last.load_state_dict(saved[1])
    assert (last.num_read, last.num_skipped) == (138, 8)


def test_of_several_ranks_the_log_names_the_one(corpus: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(make_data(corpus, 0, 1), 1, 1)
        read(make_data(corpus, 1, 2), 1, 1)
    assert caplog.messages == ["left out: broken (1 of 2 so far)", "left out: broken (1 of 2 so far on rank 1)"]
