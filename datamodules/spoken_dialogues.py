"""The DataModule that feeds spoken dialogues to every model of the project."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.batch import SpokenExample
from datamodules.formats.released_layout import SAMPLE_RATE, ReleasedLayout
from datamodules.sampling.batch_plan import plan_training
from datamodules.sampling.resumable_data_module import ResumableDataModule
from datamodules.sampling.resumable_loader import EpochDataset, PlannedWalk, ResumableLoader
from lightning_modules.errors import UserError


class SpokenDialogueDataModule(ResumableDataModule):
    """Reads a corpus in the released layout.

    An index is `<root>/<set_name>/<index>`; the paths inside it start from `root`. Training batches are shuffled, and
    sorted by length inside pools; a fit that is stopped anywhere goes on with the next batch. On several devices each
    sees its own shard, so use `Trainer(use_distributed_sampler=False)`. The constructor touches no file.

    Args:
        root: the folder of the corpus.
        units_root: the folder of the speech tokens, if another job wrote them elsewhere; `root` if None.
        text_states_root: the folder of a thinker's states, if another job wrote them elsewhere; `root` if None.
        set_name: the folder of the set inside `root`.
        fields: which of "query", "units", "reply", "transcript", "text_states" a batch holds; ids and reply texts are
            always there.
        test_fields: the same for test batches; `fields` if None.
        batch_size: training examples on each device.
        eval_batch_size: validation and test examples on each device; `batch_size` if None.
        seed: of the shuffling and of the crops.
        num_workers: processes that load; 0 loads in the main process.
        reply_crop_s: trains on a random stretch of this many seconds of each reply, a function of seed, epoch and
            example; whole replies if None.
        num_codes: the size of the codebook that speech tokens must lie in; not checked if None.
        max_train_examples: uses only the first ones; all if None.
        max_validation_examples: uses only the first ones; all if None.
        max_test_examples: uses only the first ones; all if None.
        train_index: the JSON file of the training examples.
        validation_index: the JSON file of the validation examples; no validation if None.
        test_index: the JSON file of the test examples; no test if None.

    Raises:
        UserError: if a number is out of range, or a crop is asked for without the field "reply".
    """

    def __init__(
        self,
        root: str,
        units_root: str | None = None,
        text_states_root: str | None = None,
        set_name: str = "spoken_examples",
        fields: Sequence[str] = ("query", "units"),
        test_fields: Sequence[str] | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        reply_crop_s: float | None = None,
        num_codes: int | None = None,
        max_train_examples: int | None = None,
        max_validation_examples: int | None = None,
        max_test_examples: int | None = None,
        train_index: str = "train.json",
        validation_index: str | None = "validation.json",
        test_index: str | None = "test.json",
    ) -> None:
        super().__init__(eval_batch_size or batch_size, num_workers)
        if reply_crop_s is not None and "reply" not in fields:
            raise UserError(f"reply_crop_s={reply_crop_s}, but fields={list(fields)} hold no 'reply' to crop; add it")
        limits = {"train": max_train_examples, "validation": max_validation_examples, "test": max_test_examples}
        _require_positive("batch_size", batch_size)
        _require_positive("eval_batch_size", eval_batch_size)
        _require_positive("reply_crop_s", reply_crop_s)
        for split, limit in limits.items():
            _require_positive(f"max_{split}_examples", limit)
        if num_workers < 0:
            raise UserError(f"num_workers={num_workers}: must not be negative")
        self.root = Path(root)
        self.units_root = Path(units_root) if units_root is not None else self.root
        self.text_states_root = text_states_root
        self.set_name = set_name
        self.fields = {split: tuple(fields) for split in ("train", "validation")}
        self.fields["test"] = tuple(fields if test_fields is None else test_fields)
        self.batch_size = batch_size
        self.seed = seed
        self.reply_crop_s = reply_crop_s
        self.num_codes = num_codes
        self._limits = limits
        self._indices = {"train": train_index, "validation": validation_index, "test": test_index}
        self._layouts: dict[str, ReleasedLayout] = {}

    def setup(self, stage: str) -> None:
        """Reads the indices and checks that the files are there.

        Args:
            stage: "fit", "validate" or "test", as Lightning names them.

        Raises:
            FileNotFoundError: if an index or a file that it names is missing.
            UserError: if an index does not have the released layout.
        """
        needed = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}[stage]
        for split in needed:
            if self._indices[split] is not None:
                self.examples(split)

    def examples(self, split: str) -> ReleasedLayout:
        """The dialogues of one split, in the order of its index.

        Args:
            split: "train", "validation" or "test".

        Raises:
            FileNotFoundError: if the index or a file that it names is missing.
            UserError: if the split has no index, or the index does not have the released layout.
        """
        index = self._indices[split]
        if index is None:
            raise UserError(f"{split}_index is null, so there are no examples for {split}; name a JSON file there")
        if split not in self._layouts:
            path = self.root / self.set_name / index
            self._layouts[split] = ReleasedLayout(
                path,
                self.root,
                self.units_root,
                self.fields[split],
                self.num_codes,
                self._limits[split],
                self.text_states_root,
            )
        return self._layouts[split]

    def train_dataloader(self) -> ResumableLoader:
        """The shuffled training batches; its state goes into each checkpoint."""
        examples = self.examples("train")
        _, world_size = self._place()
        sizes = examples.sizes()

        def plan(epoch: int, rank: int) -> list[list[int]]:
            return plan_training(sizes, self.batch_size, self.seed, epoch, rank, world_size)

        identity = {
            "num_examples": len(examples),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "world_size": world_size,
        }
        dataset = _EpochExamples(examples, self.seed, self.reply_crop_s)
        return self._load_training(dataset, PlannedWalk(plan, identity))

    def evaluation_examples(self, split: str) -> tuple[EpochDataset, int] | None:
        """The examples of a split and their number, or None if there is no index of it."""
        if self._indices[split] is None:
            return None
        examples = self.examples(split)
        return _EpochExamples(examples, self.seed, reply_crop_s=None), len(examples)


class _EpochExamples:
    """Examples by (epoch, index); crops replies differently in each epoch."""

    def __init__(self, examples: ReleasedLayout, seed: int, reply_crop_s: float | None) -> None:
        self._examples = examples
        self._seed = seed
        self._crop = None if reply_crop_s is None else round(reply_crop_s * SAMPLE_RATE)

    def __getitem__(self, key: tuple[int, int]) -> SpokenExample:
        epoch, index = key
        example = self._examples[index]
        if self._crop is None or example.reply is None or example.reply.numel() <= self._crop:
            return example
        generator = np.random.default_rng([self._seed, epoch, index])
        start = int(generator.integers(example.reply.numel() - self._crop + 1))
        return replace(example, reply=example.reply[start : start + self._crop])


def _require_positive(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise UserError(f"{name}={value}: must be positive")
