"""A small training in processes of its own, which may be killed at any moment and started again."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as distributed

from callbacks.runtime.last_checkpoint import LastCheckpoint
from datamodules.batch import SpokenBatch
from datamodules.formats.atomic_files import write_json
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from datamodules.shards.shard_index import INDEX, ShardIndex
from lightning_modules.number_checks import require_at_least

RESULTS = "results.json"


@dataclass(frozen=True)
class KillCase:
    """A way to train.

    Attributes:
        num_ranks: Processes that train together; after each kill, the next of these.
        num_workers: Processes that read ahead, for each of them.
        accumulate: Batches whose gradients are added up.

    Raises:
        UserError: If a number is out of range, or there is no number of processes.
    """

    num_ranks: Sequence[int] = (1,)
    num_workers: int = 0
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least(0, num_workers=self.num_workers)
        require_at_least(1, accumulate=self.accumulate, num_ranks=min(self.num_ranks, default=0))


@dataclass(frozen=True)
class Training:
    """What its processes must know.

    Attributes:
        corpus: Directory that the conversion wrote.
        folder: Where its checkpoint and, at its end, its record go.
        case: How it trains.
        num_epochs: Its length.
        max_tokens: Speech tokens of a batch.
        checkpoint_every: Batches between two checkpoints.
        seed: Seeds weights and shuffling.
        num_ranks: Processes.
        fields: What a batch holds; of "text_states", which lie beside the speech, the loss depends, too.
    """

    corpus: str
    folder: str
    case: KillCase
    num_epochs: float
    max_tokens: int
    checkpoint_every: int
    seed: int
    num_ranks: int
    fields: Sequence[str] = ("units",)

    @property
    def heartbeat(self) -> Path:
        """A file that grows by a byte with each batch."""
        return Path(self.folder) / "heartbeat"


def work(task: Training, rank: int, port: int, method: str) -> None:
    """Train in one process, as a launcher would start it.

    Args:
        task: The training.
        rank: Which of its processes this is.
        port: Where they meet.
        method: How it starts processes that read.
    """
    multiprocessing.set_start_method(method, force=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": task.num_ranks, "LOCAL_WORLD_SIZE": task.num_ranks}
    places = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_RUN_ID": "trial"}
    if task.num_ranks > 1:
        os.environ.update({name: str(value) for name, value in {**names, **sizes, **places}.items()})
    L.seed_everything(task.seed, verbose=False)
    data = ShardedDialogueDataModule(
        {"corpus": ShardedSet(task.corpus)}, fields=task.fields, max_tokens=task.max_tokens, max_examples=16,
        seed=task.seed, num_workers=task.case.num_workers,
    )  # fmt: skip
    module = _Witness(task)
    checkpoint = LastCheckpoint(Path(task.folder) / "last.ckpt", every_n_steps=task.checkpoint_every, every_s=None)
    trainer = L.Trainer(
        accelerator="cpu", devices=task.num_ranks, strategy="ddp" if task.num_ranks > 1 else "auto",
        max_epochs=-1, accumulate_grad_batches=task.case.accumulate, callbacks=[checkpoint], logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=task.folder,
    )  # fmt: skip
    last = checkpoint.file if checkpoint.file.is_file() else None
    trainer.fit(module, data, ckpt_path=last, weights_only=True)
    if rank == 0:
        write_json(Path(task.folder) / RESULTS, {"ids": module.ids, "losses": module.losses})


class _Witness(L.LightningModule):
    """A small model that writes down what it was trained on, in its checkpoint."""

    def __init__(self, task: Training) -> None:
        super().__init__()
        self.task = task
        self.codes = torch.nn.Embedding(4096, 8)
        self.head = torch.nn.Linear(8, 64)
        self.ids: list[list[list[str]]] = []
        self.losses: list[float] = []
        self.num_wanted = round(task.num_epochs * len(ShardIndex.load(Path(task.corpus) / INDEX)))

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> torch.Tensor:
        """Predict something of the next token, so that the loss depends on all batches before."""
        assert batch.units is not None
        hidden = self.codes(batch.units[:, :-1] % 4096)
        loss = torch.nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), batch.units[:, 1:].flatten() % 64)
        if batch.text_hidden is not None and batch.text_ids is not None:
            loss = loss * (1 + batch.text_hidden.float().square().mean()) * (1 + batch.text_ids.float().mean() / 1000)
        of_ranks: list[Any] = [batch.ids]
        if distributed.is_initialized():
            of_ranks = [None] * distributed.get_world_size()
            distributed.all_gather_object(of_ranks, batch.ids)
        self.ids.append(of_ranks)
        self.losses.append(float(loss.detach()))
        if self.global_rank == 0:
            with self.task.heartbeat.open("ab") as file:
                file.write(b".")
        return loss

    def on_train_start(self) -> None:
        """End a training that was killed between its last checkpoint and its end."""
        self.on_train_batch_end()

    def on_train_batch_end(self, *args: Any) -> None:
        """End the training after `num_wanted` examples."""
        self.trainer.should_stop = sum(len(ids) for step in self.ids for ids in step) >= self.num_wanted

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam, which has a state."""
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what was seen."""
        checkpoint["seen"] = {"ids": self.ids, "losses": self.losses}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was seen."""
        self.ids, self.losses = checkpoint["seen"]["ids"], checkpoint["seen"]["losses"]
