"""The DataModule that streams converted corpora of any size, mixed and bucketed, to one device or many."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.batch import SpokenBatch
from datamodules.query_augmentation import QueryAugmentation
from datamodules.sampling.epoch_plan import BatchBudget
from datamodules.sampling.epoch_walk import EpochWalk
from datamodules.sampling.resumable_data_module import ResumableDataModule
from datamodules.sampling.resumable_loader import ResumableLoader
from datamodules.shards.byte_ranges import RangeCache
from datamodules.shards.shard_files import ShardFiles
from datamodules.shards.sharded_examples import FIELDS, ForgivingExamples, ShardedExamples, open_corpus
from lightning_modules.errors import UserError

# A share of the first few examples says little.
SKIPPED_COUNTED_FROM = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardedSet:
    """A converted corpus.

    Attributes:
        url: Directory that the conversion wrote, local or remote.
        weight: How often an epoch takes each of its examples; of 0.25, another quarter of them each epoch.
    """

    url: str
    weight: float = 1.0


class ShardedDialogueDataModule(ResumableDataModule):
    """Streams tar shards by byte range.

    The plan of an epoch is a pure function of indices, seed and number of devices; a fit that is stopped anywhere goes
    on with the next batch, on as many devices as there are then. Use `Trainer(use_distributed_sampler=False)`. The
    constructor touches no file.

    Args:
        train: Corpora to train on, by name.
        validation: Directory of a converted corpus, or None.
        test: Likewise.
        fields: Which of "query", "units", "transcript" a batch holds.
        max_tokens: Padded tokens of a training batch on each device: speech tokens of the reply and, if
            `query_tokens_per_s` is given, of the query.
        max_examples: Examples of a training batch on each device.
        query_tokens_per_s: What a second of query counts in tokens.
        eval_batch_size: Validation and test examples on each device.
        seed: Of the shuffling.
        num_workers: Processes that read ahead; 0 reads in the main process.
        cache_dir: Keeps what was read of remote shards; nothing is kept if None.
        cache_gb: Size of the cache.
        num_attempts: Tries of a read before the training fails.
        max_skipped_share: Damaged examples are left out, counted and named in the log; past this share of what was read
            the training fails.
        query_augmentation: Changes training queries.

    Raises:
        UserError: If a number is out of range, a field is unknown, or there is nothing to train on.
    """

    def __init__(
        self,
        train: dict[str, ShardedSet],
        validation: str | None = None,
        test: str | None = None,
        fields: Sequence[str] = ("query", "units"),
        max_tokens: int = 4000,
        max_examples: int = 64,
        query_tokens_per_s: float = 0.0,
        eval_batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
        cache_gb: float = 20.0,
        num_attempts: int = 6,
        max_skipped_share: float = 0.01,
        query_augmentation: QueryAugmentation | None = None,
    ) -> None:
        super().__init__(eval_batch_size, num_workers)
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown or not train:
            raise UserError(f"train={train}, fields={list(fields)}: give at least one set, and fields out of {FIELDS}")
        if min(eval_batch_size, num_attempts) < 1 or min(num_workers, query_tokens_per_s, max_skipped_share) < 0:
            raise UserError(
                f"eval_batch_size={eval_batch_size}, num_attempts={num_attempts}, num_workers={num_workers}, "
                f"query_tokens_per_s={query_tokens_per_s}, max_skipped_share={max_skipped_share}: the first two must "
                "be positive, the others must not be negative"
            )
        self.train_sets, self._others = train, {"validation": validation, "test": test}
        self.fields, self.budget = tuple(fields), BatchBudget(max_tokens, max_examples)
        self.query_tokens_per_s, self.seed = query_tokens_per_s, seed
        self.cache_dir, self.cache_gb = cache_dir, cache_gb
        self.num_attempts, self.max_skipped_share = num_attempts, max_skipped_share
        self.query_augmentation = query_augmentation
        self.num_read = self.num_skipped = 0
        self._train: list[ShardFiles] | None = None

    def setup(self, stage: str) -> None:
        """Reads the indices of the training sets; those of the others are read when they are asked for."""
        if stage == "fit" and self._train is None:
            self._train = [self._open(one.url) for one in self.train_sets.values()]

    def train_dataloader(self) -> ResumableLoader:
        """The training batches; its state goes into each checkpoint."""
        assert self._train is not None, "Lightning calls setup first"
        _, world_size = self._place()
        indices = [corpus.index for corpus in self._train]
        set_of = np.repeat(np.arange(len(indices)), [len(index) for index in indices])
        lengths = np.concatenate(
            [index.num_units + np.rint(index.query_s * self.query_tokens_per_s).astype(np.int64) for index in indices]
        )
        weights = [one.weight for one in self.train_sets.values()]
        query_s = np.concatenate([index.query_s for index in indices]) if "query" in self.fields else None
        walk = EpochWalk(set_of, lengths, weights, self.budget, self.seed, world_size, query_s)
        dataset = ForgivingExamples(ShardedExamples(self._train, self.fields, self.query_augmentation))
        return self._load_training(dataset, walk)

    def on_before_batch_transfer(self, batch: SpokenBatch, dataloader_idx: int) -> SpokenBatch:
        """Counts and names what was left out of a batch.

        Raises:
            UserError: If it has become too much.
        """
        self.num_read += len(batch) + len(batch.skipped)
        self.num_skipped += len(batch.skipped)
        for problem in batch.skipped:
            _log.warning("left out: %s (%d of %d so far)", problem, self.num_skipped, self.num_read)
        if self.num_skipped > self.max_skipped_share * max(self.num_read, SKIPPED_COUNTED_FROM):
            raise UserError(
                f"{self.num_skipped} of {self.num_read} examples are damaged, more than max_skipped_share="
                f"{self.max_skipped_share}; the log names them, and the check of the corpus finds all"
            )
        return batch

    def on_after_batch_transfer(self, batch: SpokenBatch, dataloader_idx: int) -> SpokenBatch:
        """Makes samples of queries float32, on the device."""
        return batch.to_float()

    def state_dict(self) -> dict[str, Any]:
        """How far the training data was read, and what was left out; Lightning puts it into each checkpoint."""
        state = super().state_dict()
        return {**state, "num_read": self.num_read, "num_skipped": self.num_skipped} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the next `train_dataloader()` go on from there.

        Args:
            state_dict: What `state_dict()` returned.
        """
        super().load_state_dict(state_dict)
        self.num_read, self.num_skipped = state_dict.get("num_read", 0), state_dict.get("num_skipped", 0)

    def evaluation_examples(self, split: str) -> tuple[ShardedExamples, int] | None:
        """The examples of a split and their number, or None if there is no corpus of it."""
        url = self._others[split]
        if url is None:
            return None
        examples = ShardedExamples([self._open(url)], self.fields)
        return examples, len(examples)

    def _open(self, url: str) -> ShardFiles:
        cache = None if self.cache_dir is None else RangeCache(Path(self.cache_dir), round(self.cache_gb * 1e9))
        return open_corpus(url, self.num_attempts, cache)
