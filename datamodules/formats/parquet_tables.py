"""Corpora as Parquet tables that hold the audio themselves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, Table
from pyarrow.parquet import ParquetFile

from lightning_modules.errors import UserError

TABLES = ".parquet"


@dataclass(frozen=True)
class RowPlace:
    """Where a row of a table lies.

    Attributes:
        id: What the column `id` holds, not checked.
        table: Path of the table.
        group: Its group of rows.
        row: Its place in the group.
    """

    id: Any
    table: str
    group: int
    row: int


def open_table(path: Path) -> ParquetFile:
    """Open a table, without reading its rows.

    Args:
        path: Its file.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet table ({error}); fetch it again") from error


def read_group(table: ParquetFile, path: Path, group: int, columns: list[str]) -> list[dict[str, Any]]:
    """Read some columns of a group of rows.

    Args:
        table: Opened by :func:`open_table`.
        path: Its file, for errors.
        group: Number of the group.
        columns: Their names.

    Returns:
        The values of each row.

    Raises:
        UserError: If the group is damaged.
    """
    try:
        return table.read_row_group(group, columns=columns).to_pylist()
    except (OSError, ArrowException) as error:
        raise UserError(f"{path}: group {group} of its rows cannot be read ({error}); fetch it again") from error


def read_places(folder: Path) -> list[RowPlace]:
    """List the rows of all tables in a folder, without reading their audio.

    Args:
        folder: Holds tables with the columns `id`, `audio` (a struct with `bytes`), `units` and `conversations`, or
            `reply` in place of the last; `transcript` may be there, and `history_audio`, a list like `audio` of the
            spoken turns before the query.

    Returns:
        The places of the rows, in order.

    Raises:
        FileNotFoundError: If there is no table.
        UserError: If one cannot be read, or has no column `id`.
    """
    paths = sorted(folder.rglob(f"*{TABLES}"))
    if not paths:
        raise FileNotFoundError(f"{folder}: holds no {TABLES} file; fix the path")
    places: list[RowPlace] = []
    for path in paths:
        table = open_table(path)
        if "id" not in table.schema_arrow.names:
            raise UserError(f"{path}: has the columns {table.schema_arrow.names}, but no 'id'; add it")
        for group in range(table.num_row_groups):
            ids = read_group(table, path, group, ["id"])
            places += [RowPlace(one["id"], str(path), group, row) for row, one in enumerate(ids)]
    return places


class TableRows:
    """Reads rows of tables; fast in the order of the tables, because the latest group of rows is kept."""

    def __init__(self) -> None:
        self._place: tuple[str, int] | None = None
        self._rows: Table | None = None

    def read(self, place: RowPlace) -> dict[str, Any]:
        """Read a row.

        Args:
            place: One that :func:`read_places` returned.

        Returns:
            Its values by column.

        Raises:
            OSError: If the table cannot be read.
            pyarrow.ArrowException: If it is damaged.
        """
        group = place.table, place.group
        if self._rows is None or group != self._place:
            self._place, self._rows = group, ParquetFile(place.table).read_row_group(place.group)
        return self._rows.slice(place.row, 1).to_pylist()[0]
