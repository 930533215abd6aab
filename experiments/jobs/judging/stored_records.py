"""Records that are kept one by one as they are made, so that a job that was killed makes none again."""

import json
import os
from pathlib import Path
from typing import Any

from lightning_modules.errors import UserError


class StoredRecords:
    """A file of JSON lines, each with a key; what is added is on the disk when :meth:`add` returns.

    A line that was cut off by a kill is dropped, and its record made again.

    Args:
        path: The file; its folder is made.

    Attributes:
        num_dropped: Lines that were cut off.

    Raises:
        UserError: If another line than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.num_dropped = path, 0
        self._records: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        if rest:
            self.num_dropped = 1
            with self.path.open("r+b") as file:
                file.truncate(len(content) - len(rest))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                self._records[entry["key"]] = entry["record"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path}: line {number} is damaged ({error}); delete the line") from error

    def __contains__(self, key: str) -> bool:
        """Tell whether there is a record."""
        return key in self._records

    def __getitem__(self, key: str) -> Any:
        """Give a record."""
        return self._records[key]

    def __len__(self) -> int:
        """Count the records."""
        return len(self._records)

    def add(self, key: str, record: Any) -> None:
        """Keep a record, in one write, so that a reader sees whole lines."""
        line = json.dumps({"key": key, "record": record}, ensure_ascii=True) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())
        self._records[key] = record
