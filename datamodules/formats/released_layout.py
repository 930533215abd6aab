"""Reads the on-disk layout of the released VocalNet sets: a JSON list beside folders of audio and of speech tokens."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import soundfile
import soxr
import torch

from datamodules.batch import SAMPLE_RATE_HZ, SpokenExample
from datamodules.formats.released_items import ReleasedItem, read_items
from datamodules.formats.unit_files import read_units
from lightning_modules.dialogue import Turn, as_written
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_positive

FIELDS = ("query", "units", "reply", "transcript")

# The key of an item that each field is read from.
_KEYS = {"query": "speech", "units": "units", "reply": "reply_speech", "transcript": "transcript"}

# Fields that other jobs write, and the argument of the data module that says where.
_ROOTS = {"units": "units_root to the run that wrote the speech tokens"}


def check_fields(fields: Sequence[str], known: Sequence[str] = FIELDS, name: str = "fields") -> tuple[str, ...]:
    """Return the fields of a batch, all of which are known.

    Args:
        fields: What a user asks for.
        known: What there is.
        name: The argument, for the error.

    Raises:
        UserError: If one is unknown.
    """
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise UserError(f"{name}: unknown {unknown}; choose among {list(known)}")
    return tuple(fields)


@dataclass(frozen=True)
class IndexItem:
    """One entry of the JSON list; a path that the entry does not name is None.

    Attributes:
        id: Its name, unique in the list.
        reply_text: The reply.
        query: The audio file of the query.
        units: The `.npy` file of the reply's speech tokens.
        reply: The audio file of the reply.
        transcript: The query as text.
        history: Turns before the query.
        history_speech: Audio files of the spoken ones among them.
    """

    id: str
    reply_text: str
    query: Path | None = None
    units: Path | None = None
    reply: Path | None = None
    transcript: str | None = None
    history: tuple[Turn, ...] = ()
    history_speech: tuple[Path, ...] = ()


class ReleasedLayout:
    """One split of a corpus on disk; its index is read on first use.

    Args:
        index: The JSON file, a list or, as `*.jsonl`, a line for each item.
        root: The folder that `speech` and `reply_speech` paths start from.
        units_root: The folder that `units` paths start from; `root` if None.
        fields: Which of "query", "units", "reply", "transcript" to read; others stay None and need not be there.
        num_codes: The size of the codebook that speech tokens must lie in; not checked if None.
        max_examples: Keeps only the first ones; all if None.
        written_history: Gives spoken turns before the query as text, which they must have then.

    Raises:
        UserError: If a field is unknown or a number out of range.
    """

    def __init__(
        self,
        index: Path | str,
        root: Path | str,
        units_root: Path | str | None = None,
        fields: Sequence[str] = ("query", "units"),
        num_codes: int | None = None,
        max_examples: int | None = None,
        written_history: bool = False,
    ) -> None:
        require_positive(num_codes=num_codes, max_examples=max_examples)
        self.fields = check_fields(fields)
        self.index = Path(index)
        self.num_codes, self.max_examples, self.written_history = num_codes, max_examples, written_history
        self._root, self._units_root = Path(root), Path(units_root or root)

    def load(self) -> Self:
        """Read the index now rather than on first use, and return this layout.

        Raises:
            FileNotFoundError: If the index or a file that it names is missing.
            UserError: If the index does not have the released layout, or lacks a field that is asked for.
        """
        assert self.items, "an index holds at least one item"
        return self

    @functools.cached_property
    def items(self) -> list[IndexItem]:
        """The items of the index; see :meth:`load` for what is checked."""
        items = [self._item(item) for item in read_items(self.index)[: self.max_examples]]
        for field in self.fields:
            self._require(field, items)
        return items

    def __len__(self) -> int:
        """Return the number of dialogues."""
        return len(self.items)

    @property
    def ids(self) -> list[str]:
        """Names of the dialogues, in the order of the index."""
        return [item.id for item in self.items]

    def __getitem__(self, position: int) -> SpokenExample:
        """Read one dialogue.

        Raises:
            UserError: If one of its files is damaged, empty, or holds tokens outside of the codebook.
        """
        item = self.items[position]
        try:
            return SpokenExample(
                id=item.id,
                reply_text=item.reply_text,
                query=self._audio("query", item.query),
                units=self._units(item.units),
                reply=self._audio("reply", item.reply),
                transcript=item.transcript if "transcript" in self.fields else None,
                history=item.history,
                history_speech=tuple(torch.from_numpy(read_audio(path)) for path in item.history_speech),
            )
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{self.index}, item {item.id!r}: {error}") from error

    def read(self, positions: Sequence[int]) -> list[SpokenExample]:
        """Read several dialogues.

        Raises:
            UserError: See :meth:`__getitem__`.
        """
        return [self[position] for position in positions]

    def sizes(self) -> np.ndarray:
        """Return how long each dialogue is, for sorting, ``(N,) int64``.

        That is the bytes of the speech tokens' file, or of the first audio that is read, or else the characters of the
        reply: known without opening a file.
        """
        for field in ("units", "reply", "query"):
            if field in self.fields:
                return np.array([getattr(item, field).stat().st_size for item in self.items], dtype=np.int64)
        return np.array([len(item.reply_text) for item in self.items], dtype=np.int64)

    def _item(self, item: ReleasedItem) -> IndexItem:
        history, speech = (item.history, item.history_speech) if "query" in self.fields else ((), ())
        if self.written_history:
            try:
                history, speech = as_written(history), ()
            except UserError as error:
                raise UserError(f"{self.index}, item {item.id!r}: {error}") from error
        return IndexItem(
            id=item.id,
            reply_text=item.reply,
            query=None if item.speech is None else self._root / item.speech,
            units=None if item.units is None else self._units_root / item.units,
            reply=None if item.reply_speech is None else self._root / item.reply_speech,
            transcript=item.transcript,
            history=history,
            history_speech=tuple(self._root / path for path in speech),
        )

    def _require(self, field: str, items: Sequence[IndexItem]) -> None:
        absent = [item.id for item in items if getattr(item, field) is None]
        if absent:
            raise UserError(
                f"{self.index}, item {absent[0]!r}: has no {_KEYS[field]!r} key, nor have {len(absent) - 1} other "
                f"items; add it or leave {field!r} out of fields"
            )
        if field == "transcript":
            return
        files = [(item.id, path) for item in items for path in _files_of(item, field)]
        missing = [(name, path) for name, path in files if not path.is_file()]
        if missing:
            fix, (name, path) = _ROOTS.get(field, "root to the corpus"), missing[0]
            others = len({other for other, _ in missing} - {name})
            raise FileNotFoundError(
                f"{self.index}, item {name!r}: {path} is missing, and so are the files of {others} other items; set "
                f"{fix}, make them again, or leave {field!r} out of fields"
            )

    def _audio(self, field: str, path: Path | None) -> torch.Tensor | None:
        if field not in self.fields:
            return None
        assert path is not None, "checked when the index was read"
        return torch.from_numpy(read_audio(path))

    def _units(self, path: Path | None) -> torch.Tensor | None:
        if "units" not in self.fields:
            return None
        assert path is not None, "checked when the index was read"
        return torch.from_numpy(read_units(path, self.num_codes))


def _files_of(item: IndexItem, field: str) -> list[Path]:
    return [getattr(item, field), *(item.history_speech if field == "query" else ())]


def read_audio(path: Path | BinaryIO, wanted_hz: int = SAMPLE_RATE_HZ, name: str | None = None) -> np.ndarray:
    """Read audio of any rate and number of channels as mono of one rate.

    Args:
        path: A file that libsndfile reads (wav, flac, ogg, mp3).
        wanted_hz: The rate.
        name: What to call it in errors; its path if None.

    Returns:
        ``(S,) float32``.

    Raises:
        UserError: If the file is damaged or empty.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{name or path}: not readable as audio ({error}); make it again") from error
    if len(samples) == 0:
        raise UserError(f"{name or path}: holds no samples; make it again")
    mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
    return mono if rate_hz == wanted_hz else soxr.resample(mono, rate_hz, wanted_hz)
