"""Reads examples out of tar shards by byte range: from a folder, or from any address that fsspec knows."""

import contextlib
import errno
import io
import json
import os
import wave
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import soundfile
from tenacity import Retrying, stop_after_attempt, wait_random_exponential

from datamodules.shards import PARTS, ShardIndex, unpack_units


class DamagedExampleError(ValueError):
    """An example whose bytes are not what the index says."""


class RangeCache:
    """Byte ranges kept in a folder of bounded size; the ones used least lately go first.

    Several processes may share it.

    Args:
        folder: Where to keep them.
        max_bytes: How much.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._written = max_bytes  # look at the folder before the first write

    def get(self, name: str) -> bytes | None:
        """Gives what is kept under a name, or None."""
        path = self.folder / name
        try:
            content = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        return content

    def put(self, name: str, content: bytes) -> None:
        """Keeps a content, and makes room if it has become too much."""
        partial = self.folder / f".{name}.{os.getpid()}"
        partial.write_bytes(content)
        os.replace(partial, self.folder / name)
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


class ShardFiles:
    """The shards of a corpus, read by byte range.

    Args:
        url: Folder of the shards, local or remote (`s3://`, `gs://`, `http://`, ...).
        index: Where everything lies.
        num_attempts: Tries of a read, with longer and longer waits between them.
        cache: Keeps what was read of remote shards.
    """

    def __init__(self, url: str, index: ShardIndex, num_attempts: int = 6, cache: RangeCache | None = None) -> None:
        self.url, self.index, self.num_attempts, self.cache = url, index, num_attempts, cache
        self._connection: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the connection out: each process opens its own."""
        return {**vars(self), "_connection": None}

    def read(self, example: int, parts: Sequence[str] = PARTS) -> dict[str, bytes]:
        """Reads parts of one example; see :meth:`read_many`.

        Raises:
            DamagedExampleError: If they differ from what was written, or are not there.
        """
        (found,) = self.read_many([example], parts)
        if isinstance(found, DamagedExampleError):
            raise found
        return found

    def read_many(
        self, examples: Sequence[int], parts: Sequence[str] = PARTS
    ) -> list[dict[str, bytes] | DamagedExampleError]:
        """Reads parts of several examples; remote ones at the same time.

        Args:
            examples: Their rows in the index.
            parts: Some of "query", "units", "text"; what lies between them is read with them.

        Returns:
            For each example the bytes of each part, or what is wrong if they differ from what was written.

        Raises:
            OSError: If the storage cannot be reached after all tries.
        """
        columns = [PARTS.index(part) for part in parts]
        begins = self.index.offsets[examples][:, columns]
        ends = begins + self.index.sizes[examples][:, columns]
        shards = self.index.shards[self.index.shard_of[examples]].tolist()
        ranges = list(zip(shards, begins.min(axis=1).tolist(), ends.max(axis=1).tolist(), strict=True))
        contents = self._ranges(ranges)
        return [
            self._cut(example, parts, columns, content, begin)
            for example, content, (_, begin, _) in zip(examples, contents, ranges, strict=True)
        ]

    def _cut(
        self, example: int, parts: Sequence[str], columns: Sequence[int], content: bytes | None, begin: int
    ) -> dict[str, bytes] | DamagedExampleError:
        found = {}
        name, shard = self.index.ids[example], self.index.shards[self.index.shard_of[example]]
        for part, column in zip(parts, columns, strict=True):
            if content is None:
                return DamagedExampleError(f"{name}: {shard} is missing, or ends before its {part}")
            start = int(self.index.offsets[example, column]) - begin
            found[part] = content[start : start + int(self.index.sizes[example, column])]
            if zlib.crc32(found[part]) != self.index.checksums[example, column]:
                return DamagedExampleError(f"{name}: its {part} in {shard} is damaged")
        return found

    def _ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
        """Reads byte ranges of shards from the cache or from where they lie; None where there is nothing to read."""
        if self.cache is None:
            return self._fetch(ranges)
        names = [f"{shard}.{begin}-{end}" for shard, begin, end in ranges]
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
                if isinstance(answer, bytes) or _is_not_there(answer):
                    answers[place] = answer if isinstance(answer, bytes) else None
                else:
                    failed = answer
            if failed is not None:
                raise failed

        tries = Retrying(
            stop=stop_after_attempt(self.num_attempts),
            wait=wait_random_exponential(multiplier=0.2, max=20),
            reraise=True,
        )
        try:
            tries(fetch_missing)
        except Exception as error:
            raise OSError(f"{self.url} cannot be read after {self.num_attempts} tries: {error!r}") from error
        return [answers[place] for place in range(len(ranges))]

    def _ask(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        """Reads byte ranges once, and gives what went wrong with some."""
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = (os.getpid(), *fsspec.core.url_to_fs(self.url))
        _, system, folder = self._connection
        paths, begins, ends = ([one[column] for one in ranges] for column in range(3))
        return system.cat_ranges([f"{folder}/{path}" for path in paths], begins, ends, on_error="return")


def _is_not_there(error: Exception) -> bool:
    """Whether trying again cannot help: there is no such file, or it ends before the range."""
    ends_before = getattr(error, "status", None) == 416 or getattr(error, "errno", None) == errno.EINVAL
    return isinstance(error, FileNotFoundError) or ends_before


def decode_query(content: bytes) -> tuple[np.ndarray, int]:
    """Gives the samples of a query, ``(S,) float32``, and their rate."""
    if content[:4] == b"RIFF":
        with contextlib.suppress(wave.Error, EOFError):  # a few times faster than a library for all formats
            with wave.open(io.BytesIO(content)) as file:
                if file.getsampwidth() == 2 and file.getnchannels() == 1:
                    samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
                    return samples.astype(np.float32) / np.float32(32_768), file.getframerate()
    samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return (samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]), rate_hz


def decode_units(content: bytes) -> np.ndarray:
    """Gives speech tokens, ``(T,) int64``."""
    return unpack_units(content).astype(np.int64)


def decode_text(content: bytes) -> dict[str, str]:
    """Gives `id`, `reply` and, if it is known, `transcript`."""
    return json.loads(content)
