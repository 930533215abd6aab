"""Text states are streamed like every field: beside their examples, in any order, through damage and resumption."""

import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from datamodules.batch import SpokenBatch, bits_of
from datamodules.conversion.corpus_converter import CorpusConverter
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from datamodules.shards.shard_index import ShardIndex
from datamodules.shards.text_state_index import StateShardWriter, TextStateIndex
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from tests.datamodules.shards.range_server import serve
from tests.datamodules.tiny_corpus import write_split

# On a machine with one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SIZES = {"first": 30, "second": 18}
WIDTH = 4


def states_of(name: str) -> tuple[np.ndarray, torch.Tensor]:
    """Ids and hidden states that belong to a name, so that a mix-up is seen."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)) * 1000 + int(name.split("_")[1]))
    count = int(torch.randint(1, 6, (), generator=generator))
    return np.arange(count) + 7 * len(name), torch.randn(count, WIDTH, generator=generator).bfloat16()


def write_states(folder: Path, ids: list[str], thinker: str = "the thinker") -> None:
    """Write states to `folder/text_states`, in an order of their own, for replies as `write_split` makes them."""
    (folder / "text_states" / "shards").mkdir(parents=True)
    parts = []
    for number, some in enumerate((ids[::2], ids[1::2])):
        path = folder / "text_states" / "shards" / f"{number}.bin"
        with StateShardWriter.create(path, thinker, WIDTH) as writer:
            for name in some[::-1]:
                token_ids, hidden = states_of(name)
                writer.write(name, f"Reply {name.split('_')[1]}.", token_ids, bits_of(hidden))
        parts.append(TextStateIndex.load(path.with_suffix(".npz")))
    TextStateIndex.join(parts).save(folder / "text_states" / "index.npz")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two converted sets with text states beside the speech, and the loose files that they were made of."""
    root = tmp_path_factory.mktemp("corpora")
    for seed, (name, size) in enumerate(SIZES.items()):
        items = write_split(root / "loose" / name, name, size, seed)
        index = root / "loose" / name / "spoken_examples" / f"{name}.json"
        CorpusConverter(str(index), [str(root / "loose" / name)], num_workers=0, examples_per_group=9).run(root / name)
        write_states(root / name, [item["id"] for item in items])
        write_states(root / "elsewhere" / name / "spoken_examples", [item["id"] for item in items], "another")
    return root


def make_data(root: Path | str, **settings: object) -> ShardedDialogueDataModule:
    train = {name: ShardedSet(f"{root}/{name}") for name in SIZES}
    defaults = {"train": train, "max_tokens": 60, "max_examples": 4, "seed": 5, "fields": ["units", "text_states"]}
    return ShardedDialogueDataModule(**{**defaults, **settings})  # type: ignore[arg-type]


def load(data: ShardedDialogueDataModule | SpokenDialogueDataModule) -> list[SpokenBatch]:
    data.setup("fit")
    return list(data.train_dataloader())


def check(batches: list[SpokenBatch]) -> set[str]:
    """Check that each example has its own states, and return the names."""
    for batch in batches:
        assert batch.text_ids is not None and batch.text_hidden is not None and batch.text_lengths is not None
        assert batch.text_hidden.dtype == torch.bfloat16 and batch.text_ids.dtype == torch.int64
        for row, name in enumerate(batch.ids):
            token_ids, hidden = states_of(name)
            count = len(token_ids)
            assert int(batch.text_lengths[row]) == count
            assert batch.text_ids[row, :count].tolist() == token_ids.tolist() and not batch.text_ids[row, count:].any()
            assert torch.equal(batch.text_hidden[row, :count], hidden) and not batch.text_hidden[row, count:].any()
    return {name for batch in batches for name in batch.ids}


ALL = {f"{split}_{number}" for split, size in SIZES.items() for number in range(size)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_streamed_example_has_its_own_states(corpora: Path, num_workers: int) -> None:
    data = make_data(corpora, num_workers=num_workers, fields=["units", "text_states", "query"])
    batches = load(data)
    assert check(batches) == ALL and all(batch.query is not None for batch in batches)
    assert data.thinkers_of_states == {"train.first": "the thinker", "train.second": "the thinker"}


def test_states_may_lie_elsewhere_or_behind_an_address(corpora: Path, tmp_path: Path) -> None:
    elsewhere = str(corpora / "elsewhere" / "first" / "spoken_examples")
    train = {"first": ShardedSet(str(corpora / "first"), text_states=elsewhere)}
    data = make_data("", train=train, validation=str(corpora / "second"))
    assert len(check(load(data))) == SIZES["first"]
    assert data.thinkers_of_states == {"train.first": "another", "validation": "the thinker"}
    assert len(check(list(data.val_dataloader()))) == SIZES["second"]
    with serve(corpora, fail_every=10) as (address, log):
        data = make_data(address, cache_dir=str(tmp_path / "cache"))
        assert check(load(data)) == ALL
        asked = log["requests"]
        assert check(list(data.train_dataloader())) == ALL
        assert log["requests"] == asked, "everything is in the cache now"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loose_files_have_their_states_too(corpora: Path, num_workers: int) -> None:
    data = SpokenDialogueDataModule(
        str(corpora / "loose" / "second"), text_states_root=str(corpora / "elsewhere" / "second"),
        fields=["text_states", "units"], batch_size=4, num_workers=num_workers, train_index="second.json",
        validation_index=None, test_index=None,
    )  # fmt: skip
    assert len(check(load(data))) == SIZES["second"]
    assert data.thinkers_of_states == {"train": "another"}


def test_damaged_states_are_left_out_counted_and_named(corpora: Path, tmp_path: Path) -> None:
    shutil.copytree(corpora / "first", tmp_path / "first")
    (tmp_path / "first" / "text_states" / "shards" / "1.bin").write_bytes(b"")
    batches = load(make_data("", train={"first": ShardedSet(str(tmp_path / "first"))}))
    index = ShardIndex.load(tmp_path / "first" / "index.npz")
    lost = set(index.ids.tolist()[1::2])
    assert check(batches) == set(index.ids.tolist()) - lost
    told = {problem.split(":")[0] for batch in batches for problem in batch.skipped}
    assert told == lost
    assert all("its text states in 1.bin" in problem for batch in batches for problem in batch.skipped)


def test_missing_states_are_told_before_training(corpora: Path, tmp_path: Path) -> None:
    folder = str(corpora / "elsewhere" / "second" / "spoken_examples")
    train = {"first": ShardedSet(str(corpora / "first"), text_states=folder)}
    with pytest.raises(FileNotFoundError, match="item 'first_0': has no text states, nor have 29 others of 30"):
        make_data("", train=train).setup("fit")
    data = SpokenDialogueDataModule(str(corpora / "loose" / "first"), fields=["text_states"], train_index="first.json")
    with pytest.raises(FileNotFoundError, match="no index of text states; run the stage text_states"):
        data.setup("fit")


class Trained(L.LightningModule):
    """Writes down what it was trained on, and a loss that depends on all states so far."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(WIDTH))
        self.stop_after = stop_after
        self.seen: list[list[str]] = []
        self.losses: list[float] = []

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.stop_after:
            raise KeyError("killed")
        assert batch.text_hidden is not None and batch.text_ids is not None
        check([batch])
        loss = (batch.text_hidden.float() * self.weight).mean() * batch.text_ids.float().mean()
        self.seen.append(batch.ids)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["trained"] = (list(self.seen), list(self.losses))

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.seen, self.losses = (list(values) for values in checkpoint["trained"])


class Saver(L.Callback):
    """Writes a checkpoint after every third batch."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step % 3 == 0:
            trainer.save_checkpoint(self.file)


def fit(corpora: Path, module: Trained, file: Path, resume: bool = False, num_workers: int = 0) -> Trained:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Saver(file)],
        enable_checkpointing=False, use_distributed_sampler=False, log_every_n_steps=1, max_steps=18,
    )  # fmt: skip
    trainer.fit(module, make_data(corpora, num_workers=num_workers), ckpt_path=str(file) if resume else None)
    return module


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stopped_fit_resumes_with_the_same_states(corpora: Path, tmp_path: Path, num_workers: int) -> None:
    whole = fit(corpora, Trained(), tmp_path / "whole.ckpt")
    with pytest.raises(KeyError, match="killed"):
        fit(corpora, Trained(stop_after=8), tmp_path / "last.ckpt", num_workers=num_workers)
    resumed = fit(corpora, Trained(), tmp_path / "last.ckpt", resume=True, num_workers=num_workers)
    assert resumed.seen == whole.seen and resumed.losses == whole.losses
