"""The streaming DataModule gives every example once, wherever it lies, however often it is stopped."""

import json
import shutil
from collections import Counter
from pathlib import Path

import lightning as L
import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from audiomentations import AddGaussianSNR

from datamodules.batch import SpokenBatch
from datamodules.conversion.corpus_check import CorpusCheck
from datamodules.conversion.corpus_converter import CorpusConverter
from datamodules.query_augmentation import QueryAugmentation
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from datamodules.shards.byte_ranges import ByteRanges, RangeCache
from datamodules.shards.shard_index import ShardIndex
from tests.datamodules.shards.range_server import serve
from tests.datamodules.tiny_corpus import write_split

# On a machine with one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SIZES = {"first": 40, "second": 24}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two converted sets, and the loose files that they were made of."""
    root = tmp_path_factory.mktemp("corpora")
    for seed, (name, size) in enumerate(SIZES.items()):
        write_split(root / "loose" / name, name, size, seed)
        index = root / "loose" / name / "spoken_examples" / f"{name}.json"
        CorpusConverter(str(index), [str(root / "loose" / name)], num_workers=0, examples_per_group=9).run(root / name)
    return root


def make_data(root: Path | str, **settings: object) -> ShardedDialogueDataModule:
    train = {name: ShardedSet(f"{root}/{name}") for name in SIZES}
    defaults = {"train": train, "max_tokens": 60, "max_examples": 4, "seed": 5}
    return ShardedDialogueDataModule(**{**defaults, **settings})  # type: ignore[arg-type]


def load_epoch(data: ShardedDialogueDataModule) -> list[SpokenBatch]:
    data.setup("fit")
    return list(data.train_dataloader())


def test_an_epoch_holds_each_example_once_within_the_budget(corpora: Path) -> None:
    batches = load_epoch(make_data(corpora))
    names = Counter(name for batch in batches for name in batch.ids)
    assert names == Counter(f"{split}_{number}" for split, size in SIZES.items() for number in range(size))
    assert all(batch.units is not None and batch.units.numel() <= 60 and len(batch) <= 4 for batch in batches)


def test_examples_are_those_of_the_loose_files(corpora: Path) -> None:
    data = make_data(corpora, fields=["units", "transcript", "query"])
    batch = data.on_after_batch_transfer(load_epoch(data)[0], 0)
    for row, name in enumerate(batch.ids):
        loose = corpora / "loose" / name.split("_")[0] / "spoken_examples"
        assert batch.units is not None and batch.unit_lengths is not None and batch.transcripts is not None
        assert batch.query is not None and batch.query_lengths is not None
        units, query = np.load(loose / f"codec_tokens/{name}.npy"), soundfile.read(loose / f"audios/{name}.wav")[0]
        assert batch.units[row, : batch.unit_lengths[row]].tolist() == units.tolist()
        assert batch.query[row, : batch.query_lengths[row]].tolist() == query.tolist()
        assert not batch.query[row, batch.query_lengths[row] :].any()
        assert batch.transcripts[row] == f"Query {name.split('_')[1]}?"


def test_weights_mix_the_sets(corpora: Path) -> None:
    train = {"first": ShardedSet(f"{corpora}/first", 0.5), "second": ShardedSet(f"{corpora}/second", 2.0)}
    counts = Counter(name.split("_")[0] for batch in load_epoch(make_data("", train=train)) for name in batch.ids)
    assert counts == {"first": 20, "second": 48}


@pytest.mark.parametrize(("fail_every", "num_workers"), [(None, 0), (10, 0), (10, 1)])
def test_a_server_gives_the_same_batches_by_byte_range(
    corpora: Path, tmp_path: Path, fail_every: int | None, num_workers: int
) -> None:
    expected = [(batch.ids, batch.units.tolist()) for batch in load_epoch(make_data(corpora))]  # type: ignore[union-attr]
    with serve(corpora, fail_every) as (address, log):
        data = make_data(address, cache_dir=str(tmp_path / "cache"), num_workers=num_workers)
        assert [(batch.ids, batch.units.tolist()) for batch in load_epoch(data)] == expected  # type: ignore[union-attr]
        asked = log["requests"]
        assert log["ranges"] >= sum(SIZES.values())
        assert (log["failed"] > 3) is (fail_every is not None)
        assert [batch.ids for batch in data.train_dataloader()] == [ids for ids, _ in expected]
        assert log["requests"] == asked, "everything is in the cache now"


def test_what_a_server_does_not_have_is_damage_and_what_it_cannot_give_ends_the_training(
    corpora: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "first"
    shutil.copytree(corpora / "first", folder)
    shards = sorted((folder / "shards").glob("*.tar"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    with serve(tmp_path) as (address, log):
        data = make_data("", train={"first": ShardedSet(f"{address}/first")}, num_attempts=2)
        batches = load_epoch(data)
        assert sum(len(batch) for batch in batches) >= 40 - 18
        assert len({problem for batch in batches for problem in batch.skipped}) == 18
    with serve(tmp_path) as (address, _):
        data = make_data("", train={"first": ShardedSet(f"{address}/first")}, num_attempts=2)
        data.setup("fit")
    with pytest.raises(OSError, match="cannot be read after 2 attempts"):
        next(iter(data.train_dataloader()))


def test_a_server_that_fails_at_first_gives_the_index_all_the_same(corpora: Path) -> None:
    with serve(corpora, fail_every=2) as (address, log):
        log["requests"] = 1  # the next one fails
        data = make_data("", train={"first": ShardedSet(f"{address}/first")}, num_attempts=3)
        data.setup("fit")
        assert log["failed"] == 1
        with pytest.raises(FileNotFoundError, match="no index of shards"):
            make_data("", train={"absent": ShardedSet(f"{address}/absent")}).setup("fit")


def test_a_server_without_byte_ranges_is_named(corpora: Path) -> None:
    with serve(corpora, knows_ranges=False) as (address, _):
        data = make_data("", train={"first": ShardedSet(f"{address}/first")}, num_attempts=1)
        with pytest.raises(OSError, match="more than the byte range that was asked for"):
            load_epoch(data)


def test_queries_are_augmented_differently_in_each_epoch(corpora: Path) -> None:
    noise = AddGaussianSNR(min_snr_db=5.0, max_snr_db=20.0, p=1.0)
    data = make_data(corpora, query_augmentation=QueryAugmentation([noise]), max_examples=1)
    plain, loader = load_epoch(make_data(corpora, max_examples=1)), load_epoch(data)
    assert data._train_loader is not None
    second = list(data._train_loader)
    queries = [{batch.ids[0]: batch.query for batch in batches} for batches in (plain, loader, second)]
    assert queries[0].keys() == queries[1].keys() == queries[2].keys()
    for name, query in queries[0].items():
        assert query is not None
        changed = [queries[1][name], queries[2][name]]
        assert not torch.equal(query, changed[0]) and not torch.equal(*changed)  # type: ignore[arg-type]


def test_corpora_that_share_a_cache_keep_apart(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "cache", 1000)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "000000000-00.tar").write_text(f"{name:>9}")
    found = [
        ByteRanges(str(tmp_path / name), cache=cache).read([("000000000-00.tar", 0, 9)]) for name in ("first", "second")
    ]
    assert found == [[b"    first"], [b"   second"]]


def test_the_cache_stays_within_its_size(corpora: Path, tmp_path: Path) -> None:
    load_epoch(make_data(corpora, cache_dir=str(tmp_path / "cache"), cache_gb=2e-5))
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 22_000


class Trained(L.LightningModule):
    """Writes down what it was trained on, and a loss that depends on it and on all before."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.stop_after = stop_after
        self.seen: list[list[str]] = []
        self.losses: list[float] = []

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.stop_after:
            raise KeyError("killed")
        assert batch.units is not None
        loss = self.weight * batch.units.float().mean() / 50
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
    """Writes a checkpoint after every so many batches."""

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every = file, every

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.fit_loop.total_batch_idx % self.every == self.every - 1:
            trainer.save_checkpoint(self.file)


def fit(
    corpora: Path, file: Path, module: Trained, num_workers: int, steps: int, resume: bool, accumulate: int
) -> None:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, barebones=False,
        callbacks=[Saver(file, 4)], enable_checkpointing=False, use_distributed_sampler=False, log_every_n_steps=1,
        max_steps=steps, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, make_data(corpora, num_workers=num_workers), ckpt_path=str(file) if resume else None)


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
@pytest.mark.parametrize(("num_workers", "stop_after", "accumulate"), [(0, 7, 1), (0, 26, 2), (2, 7, 1)])
def test_a_stopped_fit_trains_on_the_same_and_comes_to_the_same_losses(
    corpora: Path, tmp_path: Path, num_workers: int, stop_after: int, accumulate: int
) -> None:
    whole = Trained()
    fit(corpora, tmp_path / "whole.ckpt", whole, 0, 36 // accumulate, False, accumulate)
    with pytest.raises(KeyError, match="killed"):
        fit(corpora, tmp_path / "last.ckpt", Trained(stop_after), num_workers, 36 // accumulate, False, accumulate)
    resumed = Trained()
    fit(corpora, tmp_path / "last.ckpt", resumed, num_workers, 36 // accumulate, True, accumulate)
    assert resumed.seen == whole.seen
    assert resumed.losses == whole.losses


def damage(folder: Path, rows: list[int]) -> list[str]:
    """Flip a bit of the speech tokens of some examples; return their names."""
    index = ShardIndex.load(folder / "index.npz")
    for row in rows:
        shard = folder / "shards" / str(index.shards[index.shard_of[row]])
        content = bytearray(shard.read_bytes())
        content[int(index.offsets[row, 1]) + int(index.sizes[row, 1]) - 1] ^= 4
        shard.write_bytes(content)
    return [str(index.ids[row]) for row in rows]


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, list[str]]:
    write_split(tmp_path / "loose", "train", 30)
    index = tmp_path / "loose/spoken_examples/train.json"
    CorpusConverter(str(index), [str(tmp_path / "loose")], num_workers=0, examples_per_group=9).run(tmp_path / "set")
    names = damage(tmp_path / "set", [3, 10])
    (tmp_path / "set/shards" / f"{18:09d}-00.tar").write_bytes(b"")
    return tmp_path / "set", names + [f"train_{number}" for number in range(18, 27)]


def test_damaged_examples_are_left_out_counted_and_named(
    damaged: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, names = damaged
    data = make_data("", train={"one": ShardedSet(str(folder))}, max_skipped_share=0.02)
    batches = [data.on_before_batch_transfer(batch, 0) for batch in load_epoch(data)]
    assert {name for batch in batches for name in batch.ids} == {f"train_{n}" for n in range(30)} - set(names)
    assert data.num_skipped >= len(names)
    assert all(any(f"{name}:" in message for message in caplog.messages) for name in names)
    assert all(len(batch) for batch in batches), "every device has something to do in every step"


def test_too_much_damage_stops_the_training(damaged: tuple[Path, list[str]]) -> None:
    data = make_data("", train={"one": ShardedSet(str(damaged[0]))}, max_skipped_share=0.001)
    with pytest.raises(ValueError, match="max_skipped_share"):
        [data.on_before_batch_transfer(batch, 0) for batch in load_epoch(data)]


def test_the_check_finds_all_damage(damaged: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, names = damaged
    with pytest.raises(ValueError, match=f"{len(names)} of 30 examples are damaged"):
        CorpusCheck(str(folder), num_codes=50, num_workers=0).run(tmp_path / "check")
    assert sorted(name for name, _ in json.loads((tmp_path / "check/damages.json").read_text())) == sorted(names)


def test_the_check_shows_what_is_there(corpora: Path, tmp_path: Path) -> None:
    found = CorpusCheck(str(corpora / "first"), num_codes=50, num_samples=3, num_workers=0).run(tmp_path)
    assert found["num_examples"] == 40
    assert 0.9 < found["codes_in_use"] <= 1
    assert len(list((tmp_path / "samples").glob("*.wav"))) == 3
    for name in ("lengths.png", "codes.png"):
        pixels = matplotlib.image.imread(tmp_path / name)
        assert pixels.std() > 0.05, f"{name} shows something"
