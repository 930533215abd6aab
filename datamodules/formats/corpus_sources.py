"""Where the files of a corpus lie: a folder, tar or zip archives of one, or tables that hold the audio themselves."""

import json
import logging
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import Table
from pyarrow.parquet import ParquetFile

from lightning_modules.errors import UserError

ARCHIVES = (".tar", ".zip")
TABLES = ".parquet"

_log = logging.getLogger(__name__)


class CorpusFiles(ABC):
    """Files by their relative path; each process that reads them has its own."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Gives the content of a file; raises FileNotFoundError if there is none of that name."""


class FolderFiles(CorpusFiles):
    """The files of a folder.

    Args:
        root: What their paths start from.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes:
        """Gives the content of a file."""
        return (self.root / name).read_bytes()


class TarFiles(CorpusFiles):
    """The members of an uncompressed tar archive, read where they lie; of one that is cut off, those that are there.

    Args:
        path: The archive.

    Raises:
        UserError: If it is no such archive.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        self._places[_normal(member.name)] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            if not self._places:
                raise UserError(
                    f"{path} is no uncompressed tar archive ({error}); unpack it and name its folder"
                ) from error
            _log.warning("%s is cut off behind %d members (%s)", path, len(self._places), error)

    def read(self, name: str) -> bytes:
        """Gives the content of a member; raises OSError if the archive ends in it."""
        if _normal(name) not in self._places:
            raise FileNotFoundError(name)
        offset, size = self._places[_normal(name)]
        with self._path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise OSError(f"{self._path} ends in it, after {len(content)} of {size} bytes")
        return content


class ZipFiles(CorpusFiles):
    """The members of a zip archive.

    Args:
        path: The archive.

    Raises:
        UserError: If it is no zip archive.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is no zip archive ({error})") from error
        self._names = {_normal(name): name for name in self._archive.namelist()}

    def read(self, name: str) -> bytes:
        """Gives the content of a member; raises OSError if it is damaged."""
        if _normal(name) not in self._names:
            raise FileNotFoundError(name)
        try:
            return self._archive.read(self._names[_normal(name)])
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise OSError(f"it is damaged in the archive: {error}") from error


class SeveralFiles(CorpusFiles):
    """Files that lie in several places; the first place that has one gives it.

    Args:
        places: Where to look, in this order.
    """

    def __init__(self, places: Sequence[CorpusFiles]) -> None:
        self.places = places

    def read(self, name: str) -> bytes:
        """Gives the content of a file."""
        for place in self.places:
            try:
                return place.read(name)
            except FileNotFoundError:
                continue
        raise FileNotFoundError(name)


def open_files(paths: Sequence[Path]) -> CorpusFiles:
    """Opens folders and archives as one.

    Args:
        paths: Folders, `.tar` and `.zip` archives.

    Raises:
        FileNotFoundError: If one is missing.
        UserError: If one is neither.
    """
    places: list[CorpusFiles] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such folder or archive")
        if path.is_dir():
            places.append(FolderFiles(path))
        elif path.suffix == ".tar":
            places.append(TarFiles(path))
        elif path.suffix == ".zip":
            places.append(ZipFiles(path))
        else:
            raise UserError(
                f"{path} is neither a folder nor one of {', '.join(ARCHIVES)}; unpack it and name its folder"
            )
    return SeveralFiles(places)


def read_entries(index: Path) -> list[Any]:
    """Reads the list of a corpus.

    Args:
        index: A JSON list or JSON lines in the released layout, or a folder of Parquet tables with the columns `id`,
            `audio` (a struct with `bytes`), `units` and `conversations`, or `reply` in place of the last.

    Returns:
        Its items, not checked; of a table, the place of each row, which :class:`TableRows` reads; a line that is no
        JSON as it is.

    Raises:
        FileNotFoundError: If it is missing.
        UserError: If it cannot be read.
    """
    if index.is_dir():
        return _rows_of_tables(index)
    if not index.is_file():
        raise FileNotFoundError(f"{index}: there is no such list of dialogues")
    try:
        if index.suffix == ".jsonl":
            with index.open(encoding="utf-8") as lines:
                return [_parse_line(line) for line in lines if line.strip()]
        entries = json.loads(index.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{index} is no valid JSON ({error})") from error
    if not isinstance(entries, list):
        raise UserError(f"{index} must hold a JSON list, found {type(entries).__name__}")
    return entries


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line


def _normal(name: str) -> str:
    return str(PurePosixPath(name))


def _rows_of_tables(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.rglob(f"*{TABLES}"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {TABLES} file")
    entries: list[dict[str, Any]] = []
    for path in paths:
        table = ParquetFile(path)
        if "id" not in table.schema_arrow.names:
            raise UserError(f"{path} has the columns {table.schema_arrow.names}, but no id")
        for group in range(table.num_row_groups):
            ids = table.read_row_group(group, columns=["id"])["id"].to_pylist()
            entries += [{"id": name, "table": str(path), "group": group, "row": row} for row, name in enumerate(ids)]
    return entries


class TableRows:
    """Reads rows of tables, in whose order it is fast: the group of rows that was read last is kept."""

    def __init__(self) -> None:
        self._place: tuple[str, int] | None = None
        self._rows: Table | None = None

    def read(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Reads a row from a place that :func:`read_entries` gave."""
        place = entry["table"], entry["group"]
        if self._rows is None or place != self._place:
            self._place, self._rows = place, ParquetFile(entry["table"]).read_row_group(entry["group"])
        return self._rows.slice(entry["row"], 1).to_pylist()[0]
