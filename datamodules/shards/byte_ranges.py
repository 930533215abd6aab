"""Byte ranges of files in a folder or at any address that fsspec knows, with retries and a cache."""

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from datamodules.formats.atomic_files import replacing

T = TypeVar("T")
_log = logging.getLogger(__name__)


class RangeCache:
    """Byte ranges kept in a folder of bounded size; those that were not used for the longest time are removed first.

    Several processes may share it.

    Args:
        folder: Where to keep them.
        max_bytes: How many bytes to keep.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._written = max_bytes  # look at the folder before the first write

    def get(self, name: str) -> bytes | None:
        """Return what is kept under a name, or None."""
        path = self.folder / name
        try:
            content = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        return content

    def put(self, name: str, content: bytes) -> None:
        """Keep bytes under a name, and make room if they have become too many."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / name) as partial:
            partial.write_bytes(content)
        self._written += len(content)
        if self._written >= self.max_bytes // 10:
            self._written = 0
            self._make_room()

    def _make_room(self) -> None:
        found = []
        for entry in os.scandir(self.folder):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # another process made room
            found.append((status.st_mtime, status.st_size, entry.path))
        too_much = sum(size for _, size, _ in found) - self.max_bytes
        for _, size, path in sorted(found):
            if too_much <= 0:
                return
            Path(path).unlink(missing_ok=True)
            too_much -= size


class ByteRanges:
    """Reads byte ranges of the files of a folder.

    Args:
        url: The folder, local or remote (`s3://`, `gs://`, `http://`, ...).
        num_attempts: Attempts per read, with increasing waits between them.
        cache: Keeps what was read.
    """

    def __init__(self, url: str, num_attempts: int = 6, cache: RangeCache | None = None) -> None:
        self.url, self.num_attempts, self.cache = url, num_attempts, cache
        self._connection: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the connection out: each process opens its own."""
        return {**vars(self), "_connection": None}

    def read(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
        """Read several ranges; remote ones at the same time.

        Args:
            ranges: Name of a file, begin and end in bytes.

        Returns:
            The bytes of each, fewer if the file ends before; None where there is nothing to read.

        Raises:
            OSError: If the storage cannot be reached after all attempts.
        """
        if self.cache is None:
            return self._fetch(ranges)
        folder = hashlib.sha256(self.url.encode()).hexdigest()[:16]  # corpora name their shards alike
        names = [f"{folder}.{shard}.{begin}-{end}" for shard, begin, end in ranges]
        found: dict[str, bytes | None] = {name: self.cache.get(name) for name in names}
        missing = {
            name: one for name, one in zip(names, ranges, strict=True) if len(found[name] or b"") != one[2] - one[1]
        }
        for name, content in zip(missing, self._fetch(list(missing.values())), strict=True):
            found[name] = content
            if content is not None:
                self.cache.put(name, content)
        return [found[name] for name in names]

    def _fetch(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
        answers: dict[int, bytes | None] = {}

        def fetch_missing() -> None:
            missing = [place for place in range(len(ranges)) if place not in answers]
            failed: Exception | None = None
            for place, answer in zip(missing, self._ask([ranges[place] for place in missing]), strict=True):
                _, begin, end = ranges[place]
                if not isinstance(answer, bytes) and not _is_not_there(answer):
                    failed = answer
                elif isinstance(answer, bytes) and len(answer) > end - begin:
                    failed = OSError(
                        "it gives more than the byte range that was asked for; use storage that supports byte ranges"
                    )
                else:
                    answers[place] = answer if isinstance(answer, bytes) else None
            if failed is not None:
                raise failed

        retry(fetch_missing, self.num_attempts, self.url)
        return [answers[place] for place in range(len(ranges))]

    def _ask(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        """Read byte ranges once; where that fails, return the error in place of the bytes."""
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = (os.getpid(), *fsspec.core.url_to_fs(self.url))
        _, system, folder = self._connection
        if isinstance(system, LocalFileSystem):  # takes a third of the time of a file object
            return [_read_local(f"{folder}/{path}", begin, end) for path, begin, end in ranges]
        paths, begins, ends = ([one[column] for one in ranges] for column in range(3))
        return system.cat_ranges([f"{folder}/{path}" for path in paths], begins, ends, on_error="return")


def retry(function: Callable[[], T], num_attempts: int, url: str) -> T:
    """Call a function that reads from a storage until it succeeds, with increasing waits.

    Args:
        function: What to call.
        num_attempts: Most calls.
        url: What errors call the storage.

    Raises:
        FileNotFoundError: If the function raises it.
        OSError: If the last attempt fails.
    """
    tries = Retrying(
        retry=retry_if_not_exception_type(FileNotFoundError),
        stop=stop_after_attempt(num_attempts),
        wait=wait_random_exponential(multiplier=0.2, max=20),
        before_sleep=before_sleep_log(_log, logging.INFO),
        reraise=True,
    )
    try:
        return tries(function)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise OSError(f"{url} cannot be read after {num_attempts} attempts: {error!r}") from error


def _read_local(path: str, begin: int, end: int) -> bytes | Exception:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        return error
    try:
        return os.pread(file, end - begin, begin)
    except OSError as error:
        return error
    finally:
        os.close(file)


def _is_not_there(error: Exception) -> bool:
    """Tell whether trying again cannot help: there is no such file, or it ends before the range."""
    ends_before = getattr(error, "status", None) == 416 or getattr(error, "errno", None) == errno.EINVAL
    return isinstance(error, FileNotFoundError) or ends_before
