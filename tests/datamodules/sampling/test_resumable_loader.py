"""The loader resumes exactly where it stopped, alone and under Lightning."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batch import SpokenBatch, SpokenExample
from datamodules.sampling.epoch_plan import BatchBudget
from datamodules.sampling.epoch_walk import EpochWalk
from datamodules.sampling.resumable_loader import ResumableLoader
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from tests.datamodules.tiny_corpus import write_split

# On a machine with one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

NUM_TRAIN = 13
BATCH_SIZE = 3
BATCHES_PER_EPOCH = -(-NUM_TRAIN // BATCH_SIZE)
NUM_STEPS = 10


class Names:
    """Examples that tell their epoch and index."""

    def __getitem__(self, key: tuple[int, int]) -> SpokenExample:
        epoch, index = key
        return SpokenExample(id=f"{epoch}/{index}", reply_text="Yes.")


def make_loader(num_workers: int = 0, seed: int = 0) -> ResumableLoader:
    walk = EpochWalk(
        np.zeros(NUM_TRAIN, dtype=int), np.arange(NUM_TRAIN), [1.0], BatchBudget(None, BATCH_SIZE), seed, world_size=1
    )
    return ResumableLoader(Names(), walk, num_workers=num_workers)


def take(loader: ResumableLoader, count: int) -> list[list[str]]:
    """Return the next batches, over as many epochs as it takes."""
    batches: list[list[str]] = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch.ids)
            if len(batches) == count:
                break
    return batches


@given(killed_at=st.integers(0, 3 * BATCHES_PER_EPOCH))
def test_iterations_end_where_they_would_have_ended(killed_at: int) -> None:
    loader = make_loader()
    begun = take(loader, killed_at)
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    left = len(list(resumed))
    assert left == BATCHES_PER_EPOCH - len(begun) % BATCHES_PER_EPOCH
    assert len(list(resumed)) == BATCHES_PER_EPOCH


@given(first=st.integers(0, 2 * BATCHES_PER_EPOCH + 1))
def test_first_and_rest_are_all(first: int) -> None:
    whole = take(make_loader(), 3 * BATCHES_PER_EPOCH)
    loader = make_loader()
    begun = take(loader, first)
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    assert begun + take(resumed, len(whole) - first) == whole


def test_epochs_differ_and_each_holds_all_examples_in_full_batches() -> None:
    loader = make_loader()
    batches = [[batch.ids for batch in loader] for _ in range(2)]
    assert [sorted(map(len, epoch)) for epoch in batches] == [[1, 3, 3, 3, 3]] * 2
    epochs = [sum(epoch, []) for epoch in batches]
    assert [len(set(epoch)) for epoch in epochs] == [NUM_TRAIN] * 2
    assert [name.split("/")[0] for name in epochs[1]] == ["1"] * len(epochs[1])
    assert [name.split("/")[1] for name in epochs[0]] != [name.split("/")[1] for name in epochs[1]]


def test_length_is_that_of_an_epoch_wherever_it_stands() -> None:
    loader = make_loader()
    take(loader, 2)
    assert len(loader) == BATCHES_PER_EPOCH
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    assert len(resumed) == BATCHES_PER_EPOCH
    assert len(list(resumed)) == BATCHES_PER_EPOCH - 2


def test_state_of_another_plan_is_refused() -> None:
    state = make_loader(seed=1).state_dict()
    with pytest.raises(ValueError, match="seed was 1 and is 0"):
        make_loader(seed=0).load_state_dict(state)


def test_loading_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    take(make_loader(), BATCHES_PER_EPOCH + 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_workers_count_what_was_handed_out() -> None:
    loader = make_loader(num_workers=2)
    begun = take(loader, 2)
    resumed = make_loader(num_workers=2)
    resumed.load_state_dict(loader.state_dict())
    assert begun + take(resumed, BATCHES_PER_EPOCH) == take(make_loader(), BATCHES_PER_EPOCH + 2)


class Recorder(L.LightningModule):
    """Writes down which examples it was trained on; that list is part of its checkpoint."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after = stop_after
        self.seen: list[list[str]] = []

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.stop_after:
            raise KeyError("killed")
        self.seen.append([f"{name}/{float(wave.sum()):.4f}" for name, wave in zip(batch.ids, batch.reply, strict=True)])
        return self.weight * 1.0

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        self.log("val/size", float(len(batch)), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["seen"] = list(self.seen)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.seen = list(checkpoint["seen"])


class Saver(L.Callback):
    """Writes `last.ckpt` after every so many batches, and after every epoch if told to."""

    def __init__(self, folder: Path, every_n_steps: int | None) -> None:
        self.file = folder / "last.ckpt"
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            trainer.save_checkpoint(self.file)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.every_n_steps is None:
            trainer.save_checkpoint(self.file)


def fit(
    corpus: Path, folder: Path, module: Recorder, num_workers: int, resume: bool, limits: dict, every: int | None
) -> None:
    data = SpokenDialogueDataModule(
        str(corpus), fields=["reply"], batch_size=BATCH_SIZE, seed=3, num_workers=num_workers, reply_crop_s=0.1
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Saver(folder, every)],
        enable_checkpointing=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        **limits,
    )
    trainer.fit(module, data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_split(root, "train", NUM_TRAIN)
    write_split(root, "validation", 2)
    return root


STEPS = {"max_steps": NUM_STEPS, "max_epochs": -1, "val_check_interval": 3, "check_val_every_n_epoch": None}
EPOCHS = {"max_epochs": 3}


@pytest.mark.parametrize(
    ("limits", "num_workers", "every", "killed_at"),
    [(STEPS, 0, 1, killed_at) for killed_at in range(1, NUM_STEPS)]
    + [(EPOCHS, 0, 1, killed_at) for killed_at in range(1, 3 * BATCHES_PER_EPOCH)]
    + [
        (STEPS, 0, 3, 8),
        (STEPS, 2, 1, 6),
        ({**STEPS, "limit_train_batches": 3}, 0, 1, 3),
        (STEPS, 0, None, 6),
        (EPOCHS, 0, None, 5),
        (EPOCHS, 0, None, 11),
    ],
)
def test_killed_fit_trains_on_the_same_examples(
    corpus: Path, tmp_path: Path, limits: dict, num_workers: int, every: int | None, killed_at: int
) -> None:
    whole = Recorder()
    fit(corpus, tmp_path / "whole", whole, 0, False, limits, every)
    an_epoch = limits.get("limit_train_batches", BATCHES_PER_EPOCH)
    assert len(whole.seen) == limits.get("max_steps", 3 * an_epoch)
    with pytest.raises(KeyError, match="killed"):
        fit(corpus, tmp_path / "killed", Recorder(stop_after=killed_at), num_workers, False, limits, every)
    resumed = Recorder()
    fit(corpus, tmp_path / "killed", resumed, num_workers, True, limits, every)
    assert resumed.seen == whole.seen
