"""The DataModule that feeds spoken dialogues to every model of the project."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.batch import SAMPLE_RATE_HZ, SpokenExample
from datamodules.formats.codec_record import read_codec_record
from datamodules.formats.joined_layouts import JoinedLayouts
from datamodules.formats.released_layout import FIELDS, ReleasedLayout, check_fields
from datamodules.query_augmentation import QueryAugmentation
from datamodules.sampling.epoch_plan import BatchBudget
from datamodules.sampling.epoch_walk import EpochWalk
from datamodules.sampling.resumable_data_module import ResumableDataModule
from datamodules.sampling.resumable_loader import EpochDataset, ResumableLoader
from datamodules.shards.text_state_files import TextStateFiles
from datamodules.shards.text_state_index import TEXT_STATES
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive
from lightning_modules.token_format import TokenFormat

KNOWN_FIELDS = (*FIELDS, TEXT_STATES)


class SpokenDialogueDataModule(ResumableDataModule):
    """Reads a corpus in the released layout.

    An index is `<root>/<set_name>/<index>`; the paths inside it start from `root`. Training batches are shuffled, and
    sorted by length inside pools; a fit that is stopped anywhere resumes with the next batch, on any number of devices.
    Each device reads its own share, so use `Trainer(use_distributed_sampler=False)`. The constructor touches no file.

    Args:
        root: The folder of the corpus; or several by name, whose examples are mixed, named `<name>/<id>`, and know the
            name of their corpus.
        units_root: The folder of the speech tokens, if another job wrote them elsewhere, or one by the name of each
            corpus; `root` if None.
        text_states_root: The same for a thinker's states, which lie in `<set_name>/text_states/` of it.
        weights: How often an epoch takes the examples of each of several corpora; once if None.
        set_name: The folder of the set inside `root`.
        fields: Which of "query", "units", "reply", "transcript", "text_states" a batch holds; ids and reply texts are
            always there.
        test_fields: The same for test batches; `fields` if None.
        batch_size: Training examples on each device; the last batches of an epoch may hold fewer.
        eval_batch_size: Validation and test examples on each device; `batch_size` if None.
        seed: Seeds the shuffling and the crops.
        num_workers: Processes that load; 0 loads in the main process.
        reply_crop_s: Trains on a random stretch of this many seconds of each reply, a function of seed, epoch and
            example; whole replies if None.
        num_codes: The size of the codebook that speech tokens must lie in; not checked if None.
        max_train_examples: Uses only the first ones of each corpus; all if None.
        max_validation_examples: The same for validation.
        max_test_examples: The same for the test.
        train_index: The JSON file of the training examples.
        validation_index: The JSON file of the validation examples; no validation if None.
        test_index: The JSON file of the test examples; no test if None.
        written_history: Gives spoken turns before the query as text, which they must have then.
        query_augmentation: Changes training queries, and the spoken turns before them in the same way.

    Raises:
        UserError: If a number is out of range, a field is unknown, a crop is asked for without the field "reply", or
            folders or weights are not those of the corpora.
    """

    def __init__(
        self,
        root: str | Mapping[str, str],
        units_root: str | Mapping[str, str] | None = None,
        text_states_root: str | Mapping[str, str] | None = None,
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
        weights: Mapping[str, float] | None = None,
        written_history: bool = False,
        query_augmentation: QueryAugmentation | None = None,
    ) -> None:
        super().__init__(batch_size if eval_batch_size is None else eval_batch_size, num_workers)
        if reply_crop_s is not None and "reply" not in fields:
            raise UserError(f"reply_crop_s={reply_crop_s}, but fields={list(fields)} hold no 'reply' to crop; add it")
        limits = {"train": max_train_examples, "validation": max_validation_examples, "test": max_test_examples}
        require_at_least(0, seed=seed)
        require_at_least(1, batch_size=batch_size, num_codes=num_codes)
        require_at_least(1, **{f"max_{split}_examples": limit for split, limit in limits.items()})
        require_positive(reply_crop_s=reply_crop_s)
        self.roots: dict[str | None, str] = {None: root} if isinstance(root, str) else dict(root)
        if not self.roots:
            raise UserError("root is an empty mapping; name the folder of at least one corpus")
        self.units_roots = self._by_corpus("units_root", units_root)
        self.text_states_roots = self._by_corpus("text_states_root", text_states_root)
        self.weights = [float(weight) for weight in self._by_corpus("weights", weights, default=1.0).values()]
        require_at_least(0, **{f"weights[{index}]": weight for index, weight in enumerate(self.weights)})
        self.set_name = set_name
        self.fields = dict.fromkeys(("train", "validation", "test"), check_fields(fields, KNOWN_FIELDS))
        if test_fields is not None:
            self.fields["test"] = check_fields(test_fields, KNOWN_FIELDS, "test_fields")
        self.batch_size = batch_size
        self.seed = seed
        self.reply_crop_s = reply_crop_s
        self.num_codes, self.written_history = num_codes, written_history
        self.query_augmentation = query_augmentation
        self._limits = limits
        self._indices = {"train": train_index, "validation": validation_index, "test": test_index}
        self._layouts: dict[str, ReleasedLayout | JoinedLayouts] = {}
        self._parts: dict[str, dict[str | None, ReleasedLayout]] = {}
        self._text_states: dict[str, dict[str | None, TextStateFiles]] = {}

    def setup(self, stage: str) -> None:
        """Read the indices and check that the files are there.

        Args:
            stage: One of "fit", "validate" and "test", as Lightning names them.

        Raises:
            FileNotFoundError: If an index or a file that it names is missing.
            UserError: If an index does not have the released layout.
        """
        needed = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}[stage]
        for split in needed:
            if self._indices[split] is not None:
                self.examples(split)
                self._states(split)

    def examples(self, split: str) -> ReleasedLayout | JoinedLayouts:
        """Return the dialogues of one split, in the order of its index, one corpus behind the other.

        Args:
            split: One of "train", "validation" and "test".

        Raises:
            FileNotFoundError: If the index or a file that it names is missing.
            UserError: If the split has no index, or the index does not have the released layout.
        """
        index = self._indices[split]
        if index is None:
            raise UserError(f"{split}_index is null, so there are no examples for {split}; name a JSON file there")
        if split not in self._layouts:
            read = {name: self._read(split, index, name) for name in self.roots}
            self._parts[split] = read
            self._layouts[split] = read[None] if None in read else JoinedLayouts(read)
        return self._layouts[split]

    def token_formats(self) -> dict[str, TokenFormat]:
        """Return what codec wrote the speech tokens, by their folder; empty if it left no record, or none are read.

        Raises:
            UserError: If the record is damaged.
        """
        if not any("units" in fields for fields in self.fields.values()):
            return {}
        given = {name: self.roots[name] if folder is None else folder for name, folder in self.units_roots.items()}
        folders = dict.fromkeys(str(folder) for folder in given.values())
        return {folder: record for folder in folders if (record := read_codec_record(folder)) is not None}

    def _read(self, split: str, index: str, name: str | None) -> ReleasedLayout:
        root = Path(self.roots[name])
        return ReleasedLayout(
            root / self.set_name / index,
            root,
            self.units_roots[name],
            [field for field in self.fields[split] if field != TEXT_STATES],
            self.num_codes,
            self._limits[split],
            self.written_history,
        ).load()

    def _by_corpus(self, argument: str, given: Any, default: Any = None) -> dict[str | None, Any]:
        """Return what is given for each corpus."""
        if given is None:
            return dict.fromkeys(self.roots, default)
        values = dict(given) if isinstance(given, Mapping) else {None: given}
        if values.keys() != self.roots.keys():
            raise UserError(
                f"{argument}={given!r} does not go with root={self.roots.get(None, self.roots)!r}; give one value for "
                "one corpus, or one by the name of each"
            )
        return {name: values[name] for name in self.roots}

    @property
    def thinkers_of_states(self) -> dict[str, str]:
        """Digest of the thinker that wrote the text states of each split and corpus that was set up."""
        return {
            split if name is None else f"{split}.{name}": str(states.index.thinker)
            for split, of_split in self._text_states.items()
            for name, states in of_split.items()
        }

    def _states(self, split: str) -> list[TextStateFiles]:
        """Open the text states of a split, one corpus behind the other; none if its batches hold none."""
        if TEXT_STATES in self.fields[split] and split not in self._text_states:
            self.examples(split)
            self._text_states[split] = {
                name: TextStateFiles.open(
                    f"{self.text_states_roots[name] or self.roots[name]}/{self.set_name}", layout.ids, str(layout.index)
                )
                for name, layout in self._parts[split].items()
            }
        return list(self._text_states.get(split, {}).values())

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of shuffled training batches; its state goes into each checkpoint."""
        examples = self.examples("train")
        _, world_size = self._place()
        one_set = np.zeros(len(examples), dtype=np.int64)
        sets = examples.sets() if isinstance(examples, JoinedLayouts) else one_set
        budget = BatchBudget(None, self.batch_size)
        walk = EpochWalk(sets, examples.sizes(), self.weights, budget, self.seed, world_size)
        return self._load_training(self._by_epoch("train", self.reply_crop_s, self.query_augmentation), walk)

    def evaluation_examples(self, split: str) -> tuple[EpochDataset, int] | None:
        """Return the examples of a split and their number, or None if there is no index of it."""
        if self._indices[split] is None:
            return None
        return self._by_epoch(split, reply_crop_s=None), len(self.examples(split))

    def _by_epoch(
        self, split: str, reply_crop_s: float | None, augment: QueryAugmentation | None = None
    ) -> "_EpochExamples":
        return _EpochExamples(self.examples(split), self.seed, reply_crop_s, self._states(split), augment)


class _EpochExamples:
    """Examples by (epoch, index), with their text states if any; crops replies and changes queries by epoch."""

    def __init__(
        self,
        examples: ReleasedLayout | JoinedLayouts,
        seed: int,
        reply_crop_s: float | None,
        text_states: list[TextStateFiles],
        augment: QueryAugmentation | None = None,
    ) -> None:
        self._examples, self._augment = examples, augment
        self._text_states = text_states
        self._starts = np.cumsum([0, *map(len, text_states)])
        self._seed = seed
        self._crop = None if reply_crop_s is None else round(reply_crop_s * SAMPLE_RATE_HZ)

    def __getitem__(self, key: tuple[int, int]) -> SpokenExample:
        epoch, index = key
        example = self._examples[index]
        if self._augment is not None and example.query is not None:
            query, *earlier = (self._augment(one, epoch, index) for one in (example.query, *example.history_speech))
            example = replace(example, query=query, history_speech=tuple(earlier))
        if self._text_states:
            which = int(np.searchsorted(self._starts, index, side="right")) - 1
            states = self._text_states[which].read(index - int(self._starts[which]), example.reply_text)
            example = states.added_to(example)
        if self._crop is None or example.reply is None or example.reply.numel() <= self._crop:
            return example
        generator = np.random.default_rng([self._seed, epoch, index])
        start = int(generator.integers(example.reply.numel() - self._crop + 1))
        return replace(example, reply=example.reply[start : start + self._crop])
