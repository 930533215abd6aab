"""What a spoken benchmark asks, and how its answers are to be scored."""

import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
from pyarrow import ArrowException

from datamodules.formats.parquet_tables import RowPlace, TableRows
from datamodules.formats.released_layout import read_audio
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least

NO_AUDIO = "no audio file"
NO_QUESTION = "no question"
NO_REFERENCE = "no reference answer"
NO_RULE = "no rule for this set"
SEVERAL_ROUNDS = "several rounds"
OVER_LIMIT = "over max_per_set"


class Scoring(Enum):
    """How the answer to a query is scored; the value says it in a table."""

    ALIAS = "alias match"
    CHOICE = "choice"
    REPEAT = "1 - WER"
    OPEN = "rating"
    REFERENCE = "rating with reference"

    @property
    def is_open(self) -> bool:
        """Whether there is no one right answer, so that a judge has to score it."""
        return self in (Scoring.OPEN, Scoring.REFERENCE)


class QueryAudio(ABC):
    """Where the speech of a query lies."""

    @abstractmethod
    def read(self) -> np.ndarray:
        """Give ``(S,) float32`` at 16 kHz; raises UserError if it cannot be read."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Give a text that changes when the file does, without reading it."""


@dataclass(frozen=True)
class AudioFile(QueryAudio):
    """Speech in a file of its own."""

    path: Path

    def read(self) -> np.ndarray:
        """Read the file; see :class:`QueryAudio`."""
        return read_audio(self.path)

    def fingerprint(self) -> str:
        """Give name, size and time of the file; see :class:`QueryAudio`."""
        return _stamp(self.path)


@dataclass(frozen=True)
class AudioInTable(QueryAudio):
    """Speech in the column `audio` of a Parquet table, a struct with `bytes`."""

    rows: TableRows
    place: RowPlace

    def read(self) -> np.ndarray:
        """Read the row; see :class:`QueryAudio`."""
        where = f"{self.place.table}, row {self.place.id}"
        try:
            audio = self.rows.read(self.place).get("audio")
        except (OSError, ArrowException) as error:
            raise UserError(f"{where}: cannot be read ({error}); fetch the table again") from error
        content = audio.get("bytes") if isinstance(audio, dict) else audio
        if not isinstance(content, bytes):
            raise UserError(f"{where}: 'audio' holds no bytes; fetch the table again")
        return read_audio(io.BytesIO(content), name=where)

    def fingerprint(self) -> str:
        """Give name, size and time of the table, and the row; see :class:`QueryAudio`."""
        return f"{_stamp(Path(self.place.table))} {self.place.group} {self.place.row}"


def _stamp(file: Path) -> str:
    found = file.stat()
    return f"{file.name} {found.st_size} {found.st_mtime_ns}"


@dataclass(frozen=True)
class BenchmarkQuery:
    """One query of a benchmark.

    Attributes:
        set_name: The set that it belongs to, such as "web_questions".
        number: Its place in the set, from 0.
        question: What is asked, as text.
        references: Right answers, each enough by itself, or what a good answer may say; none for a free one.
        scoring: How the answer is scored.
        audio: What is asked, as speech.
    """

    set_name: str
    number: int
    question: str
    references: tuple[str, ...]
    scoring: Scoring
    audio: QueryAudio


@dataclass
class BenchmarkContents:
    """What was read of a benchmark.

    Attributes:
        queries: Set by set, in the order of their files.
        skipped: Items that are not asked, by set and reason.
    """

    queries: list[BenchmarkQuery] = field(default_factory=list)
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)


def require_columns(table: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse a table that lacks a column.

    Args:
        table: Its file, for errors.
        found: The columns that it has.
        needed: Those that are read.

    Raises:
        UserError: If one is missing.
    """
    missing = [column for column in needed if column not in found]
    if missing:
        raise UserError(f"{table}: has the columns {found}, but no {missing[0]!r}; fetch it again")


class Benchmark(ABC):
    """A benchmark in a folder.

    Args:
        folder: Where it lies; None reads nothing.
        sets: Sets that are read; all that are there if None.
        max_per_set: Queries of each set, from the first on; all if None.

    Raises:
        UserError: If the limit is below 1.
    """

    def __init__(
        self, folder: Path | None = None, sets: list[str] | None = None, max_per_set: int | None = None
    ) -> None:
        require_at_least(1, max_per_set=max_per_set)
        self.folder = None if folder is None else Path(folder).expanduser()
        self.sets, self.max_per_set = sets, max_per_set

    def read(self) -> BenchmarkContents:
        """List its queries, without their audio.

        Raises:
            FileNotFoundError: If the folder or a set that is named is not there.
            UserError: If a file has another format.
        """
        contents = BenchmarkContents()
        if self.folder is None:
            return contents
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder; give the one that holds the benchmark")
        found = self.find_sets(self.folder)
        if not found:
            raise FileNotFoundError(f"{self.folder}: holds no set of {type(self).__name__}; {self.expected}")
        missing = [name for name in self.sets or () if name not in found]
        if missing:
            raise FileNotFoundError(f"{self.folder}: has no set {missing[0]!r}; choose among {', '.join(found)}")
        for name in found if self.sets is None else self.sets:
            self._read_limited(name, found[name], contents)
        return contents

    def _read_limited(self, name: str, files: list[Path], contents: BenchmarkContents) -> None:
        count = 0
        for item in self.read_set(name, files):
            if isinstance(item, str):
                contents.skipped[name, item] += 1
            elif self.max_per_set is not None and count >= self.max_per_set:
                contents.skipped[name, OVER_LIMIT] += 1
            else:
                contents.queries.append(item)
                count += 1

    @property
    @abstractmethod
    def expected(self) -> str:
        """Say what files the folder should hold."""

    @abstractmethod
    def find_sets(self, folder: Path) -> dict[str, list[Path]]:
        """Give the files of each set, in order."""

    @abstractmethod
    def read_set(self, name: str, files: list[Path]) -> Iterable[BenchmarkQuery | str]:
        """Give the queries of a set; in place of one that cannot be asked, why."""
