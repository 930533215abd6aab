"""The DataModule that streams converted corpora of any size, mixed and bucketed, to one device or many."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.batch import SpokenBatch
from datamodules.formats.codec_record import read_codec_record
from datamodules.formats.released_layout import check_fields
from datamodules.query_augmentation import QueryAugmentation
from datamodules.sampling.epoch_plan import BatchBudget
from datamodules.sampling.epoch_walk import EpochWalk
from datamodules.sampling.resumable_data_module import ResumableDataModule
from datamodules.sampling.resumable_loader import ResumableLoader
from datamodules.shards.byte_ranges import RangeCache
from datamodules.shards.shard_files import ShardFiles
from datamodules.shards.sharded_examples import FIELDS, ForgivingExamples, ShardedExamples, open_corpus
from datamodules.shards.text_state_files import TextStateFiles
from datamodules.shards.text_state_index import TEXT_STATES
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive, require_within
from lightning_modules.token_format import TokenFormat

# A share of the first few examples says little.
SKIPPED_COUNTED_FROM = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardedSet:
    """A converted corpus.

    Attributes:
        url: Directory that the conversion wrote, local or remote.
        weight: How often an epoch takes each of its examples; 0.25 takes a different quarter of them in each epoch.
        text_states: Directory or address whose `text_states/` holds what a thinker said to its replies; `url` if None.

    Raises:
        UserError: If the weight is negative or not finite.
    """

    url: str
    weight: float = 1.0
    text_states: str | None = None

    def __post_init__(self) -> None:
        """Check the weight."""
        require_at_least(0, weight=self.weight)


class ShardedDialogueDataModule(ResumableDataModule):
    """Streams tar shards by byte range.

    The plan of an epoch is a pure function of indices, seed and number of devices; a fit that is stopped anywhere
    resumes with the next batch, on any number of devices. Use `Trainer(use_distributed_sampler=False)`. The
    constructor touches no file.

    Args:
        train: Corpora to train on, by name.
        validation: Directory of a converted corpus, or None.
        test: Directory of a converted corpus, or None.
        fields: Which of "query", "units", "transcript", "text_states" a batch holds; test batches hold no text states.
        max_tokens: Padded speech tokens of a training batch on each device.
        max_examples: Examples of a training batch on each device.
        eval_batch_size: Validation and test examples on each device.
        seed: Seeds the shuffling.
        num_workers: Processes that read ahead; 0 reads in the main process.
        cache_dir: Keeps what was read of remote shards; nothing is kept if None.
        cache_gb: Size of the cache.
        num_attempts: Attempts per read before the training fails.
        max_skipped_share: Damaged examples are left out, counted and named in the log; above this share of what was
            read the training fails.
        query_augmentation: Changes training queries.
        written_history: Gives spoken turns before the query as text; an example where one has none counts as damaged.
        validation_text_states: Directory whose `text_states/` holds what a thinker said to the replies of `validation`;
            that of `validation` if None.

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
        eval_batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
        cache_gb: float = 20.0,
        num_attempts: int = 6,
        max_skipped_share: float = 0.01,
        query_augmentation: QueryAugmentation | None = None,
        written_history: bool = False,
        validation_text_states: str | None = None,
    ) -> None:
        super().__init__(eval_batch_size, num_workers)
        if not any(one.weight for one in train.values()):
            raise UserError(f"train={train}: give at least one set with a weight above 0")
        require_at_least(0, seed=seed)
        require_at_least(1, num_attempts=num_attempts)
        require_positive(cache_gb=cache_gb)
        require_within(0, 1, max_skipped_share=max_skipped_share)
        self.train_sets, self._others = train, {"validation": validation, "test": test}
        self.fields, self.budget = check_fields(fields, FIELDS), BatchBudget(max_tokens, max_examples)
        self.seed = seed
        self.cache_dir, self.cache_gb = cache_dir, cache_gb
        self.num_attempts, self.max_skipped_share = num_attempts, max_skipped_share
        self.query_augmentation, self.written_history = query_augmentation, written_history
        self.validation_text_states = validation_text_states
        self._text_states: dict[str, TextStateFiles] = {}
        self.num_read = self.num_skipped = 0
        self._train: list[ShardFiles] | None = None

    def setup(self, stage: str) -> None:
        """Read the indices of the training sets; those of the others are read when they are asked for."""
        if stage == "fit" and self._train is None:
            self._train = [self._open(one.url) for one in self.train_sets.values()]
            for (name, one), corpus in zip(self.train_sets.items(), self._train, strict=True):
                self._open_states(f"train.{name}", one.text_states or one.url, corpus)
        if stage in ("fit", "validate") and self._others["validation"] is not None and TEXT_STATES in self.fields:
            self.evaluation_examples("validation")  # so that states of another thinker are refused before training

    @property
    def thinkers_of_states(self) -> dict[str, str]:
        """Digest of the thinker that wrote the text states of each corpus that was set up."""
        return {name: str(states.index.thinker) for name, states in self._text_states.items()}

    def token_formats(self) -> dict[str, TokenFormat]:
        """Return what codec wrote the speech tokens, by corpus; corpora without a record are left out.

        Raises:
            UserError: If a record is damaged.
        """
        urls = [one.url for one in self.train_sets.values()] + [url for url in self._others.values() if url is not None]
        return {url: record for url in dict.fromkeys(urls) if (record := read_codec_record(url)) is not None}

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of training batches; its state goes into each checkpoint."""
        assert self._train is not None, "Lightning calls setup first"
        _, world_size = self._place()
        indices = [corpus.index for corpus in self._train]
        set_of = np.repeat(np.arange(len(indices)), [len(index) for index in indices])
        lengths = np.concatenate([index.num_units for index in indices]).astype(np.int64)
        weights = [one.weight for one in self.train_sets.values()]
        query_s = np.concatenate([index.query_s for index in indices]) if "query" in self.fields else None
        walk = EpochWalk(set_of, lengths, weights, self.budget, self.seed, world_size, query_s)
        states = (
            [self._text_states[f"train.{name}"] for name in self.train_sets] if TEXT_STATES in self.fields else None
        )
        dataset = ForgivingExamples(
            ShardedExamples(self._train, self.fields, self.query_augmentation, self.written_history, states)
        )
        return self._load_training(dataset, walk)

    def on_before_batch_transfer(self, batch: SpokenBatch, dataloader_idx: int) -> SpokenBatch:
        """Count and name what was left out of a batch.

        Raises:
            UserError: If too much has been left out.
        """
        self.num_read += len(batch) + len(batch.skipped)
        self.num_skipped += len(batch.skipped)
        for problem in batch.skipped:
            rank, world_size = self._place()
            where = f" on rank {rank}" if world_size > 1 else ""
            _log.warning("left out: %s (%d of %d so far%s)", problem, self.num_skipped, self.num_read, where)
        if self.num_skipped > self.max_skipped_share * max(self.num_read, SKIPPED_COUNTED_FROM):
            raise UserError(
                f"{self.num_skipped} of {self.num_read} examples are damaged, more than max_skipped_share="
                f"{self.max_skipped_share}; the log names them, and CorpusCheck finds all"
            )
        return batch

    def on_after_batch_transfer(self, batch: SpokenBatch, dataloader_idx: int) -> SpokenBatch:
        """Convert the samples of queries to float32, on the device."""
        return batch.to_float()

    def state_dict(self) -> dict[str, Any]:
        """Return how far the training data was read, and the counts of all ranks; Lightning saves it in checkpoints.

        Lightning calls it on every rank, which the sum needs.
        """
        state = super().state_dict()
        if not state:
            return {}
        counts = torch.tensor([self.num_read, self.num_skipped])
        if self.trainer is not None and self.trainer.world_size > 1:
            counts = counts.to(self.trainer.strategy.root_device)  # where the backend can sum
            torch.distributed.all_reduce(counts)
        num_read, num_skipped = counts.tolist()
        return {**state, "num_read": num_read, "num_skipped": num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next `train_dataloader()` resume from a state; rank 0 takes over the counts of all.

        Args:
            state_dict: What `state_dict()` returned.
        """
        super().load_state_dict(state_dict)
        is_first = self._place()[0] == 0
        self.num_read = state_dict.get("num_read", 0) if is_first else 0
        self.num_skipped = state_dict.get("num_skipped", 0) if is_first else 0

    def evaluation_examples(self, split: str) -> tuple[ShardedExamples, int] | None:
        """Return the examples of a split and their number, or None if there is no corpus of it."""
        url = self._others[split]
        if url is None:
            return None
        corpus = self._open(url)
        if split == "validation":
            self._open_states(split, self.validation_text_states or url, corpus)
        states = [self._text_states[split]] if split in self._text_states else None
        examples = ShardedExamples([corpus], self.fields, None, self.written_history, states)
        return examples, len(examples)

    def _open(self, url: str) -> ShardFiles:
        return open_corpus(url, self.num_attempts, self._cache())

    def _open_states(self, name: str, folder: str, corpus: ShardFiles) -> None:
        if TEXT_STATES in self.fields:
            ids = corpus.index.ids
            self._text_states[name] = TextStateFiles.open(folder, ids, corpus.url, self.num_attempts, self._cache())

    def _cache(self) -> RangeCache | None:
        return None if self.cache_dir is None else RangeCache(Path(self.cache_dir), round(self.cache_gb * 1e9))
