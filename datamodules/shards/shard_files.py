"""Reads examples out of tar shards by byte range: from a folder, or from any address that fsspec knows."""

import io
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from datamodules.batch import SAMPLE_RATE_HZ, to_pcm
from datamodules.shards.byte_ranges import ByteRanges, RangeCache
from datamodules.shards.shard_index import PARTS, ShardIndex, unpack_units
from lightning_modules.dialogue import Turn
from lightning_modules.errors import UserError

# RIFF; format: its size, coding, channels, rate, bytes per second and per sample, bits per sample; data: its size.
_WAV_HEADER = struct.Struct("<4s4x4s 4sIHHI4xHH 4sI")


class DamagedExampleError(UserError):
    """An example whose bytes are not what the index says."""


class ShardFiles:
    """The shards of a corpus, read by byte range.

    Args:
        url: Folder of the shards, local or remote (`s3://`, `gs://`, `http://`, ...).
        index: Where everything lies.
        num_attempts: Attempts per read, with increasing waits between them.
        cache: Keeps what was read of remote shards.
    """

    def __init__(self, url: str, index: ShardIndex, num_attempts: int = 6, cache: RangeCache | None = None) -> None:
        self.url, self.index = url, index
        self._files = ByteRanges(url, num_attempts, cache)

    def read(self, example: int, parts: Sequence[str] = PARTS) -> dict[str, memoryview]:
        """Read parts of one example; see :meth:`read_many`.

        Raises:
            DamagedExampleError: If they differ from what was written, or are not there.
        """
        (found,) = self.read_many([example], parts)
        if isinstance(found, DamagedExampleError):
            raise found
        return found

    def read_many(
        self, examples: Sequence[int], parts: Sequence[str] = PARTS
    ) -> list[dict[str, memoryview] | DamagedExampleError]:
        """Read parts of several examples; remote ones at the same time.

        Args:
            examples: Their rows in the index.
            parts: Some of "query", "units", "text"; what lies between them is read with them.

        Returns:
            For each example the bytes of each part, and under "whole" those from the first part to the last with what
            lies between; or what is wrong if they differ from what was written.

        Raises:
            OSError: If the storage cannot be reached after all attempts.
        """
        columns = [PARTS.index(part) for part in parts]
        offsets, sizes = (values[examples][:, columns] for values in (self.index.offsets, self.index.sizes))
        begins, ends = offsets.min(axis=1), (offsets + sizes).max(axis=1)
        shards = self.index.shards[self.index.shard_of[examples]].tolist()
        contents = self._files.read(list(zip(shards, begins.tolist(), ends.tolist(), strict=True)))
        places = (
            (offsets - begins[:, None]).tolist(),
            sizes.tolist(),
            self.index.checksums[examples][:, columns].tolist(),
        )
        found = []
        for example, shard, content, *own in zip(examples, shards, contents, *places, strict=True):
            cut, damaged = _cut(content, parts, *own)
            name = self.index.ids[example]
            found.append(
                cut if damaged is None else DamagedExampleError(f"{name}: its {damaged} in {shard} is damaged")
            )
        return found


def _cut(
    content: bytes | None, parts: Sequence[str], begins: list[int], sizes: list[int], checksums: list[int]
) -> tuple[dict[str, memoryview], str | None]:
    """Cut what was read into parts; return them and the name of the first that is not what was written."""
    view = memoryview(content or b"")
    found = {"whole": view}
    for part, begin, size, checksum in zip(parts, begins, sizes, checksums, strict=True):
        found[part] = view[begin : begin + size]
        if zlib.crc32(found[part]) != checksum:
            return found, part
    return found, None


def decode_query(content: bytes | memoryview) -> tuple[Tensor, int]:
    """Return the samples of a query, ``(S,) int16``, and their rate."""
    if len(content) >= _WAV_HEADER.size:  # about twenty times faster than a library for all formats
        riff, wave, *layout, coding, channels, rate_hz, width, bits, data, size = _WAV_HEADER.unpack_from(content)
        start = [riff, wave, *layout, coding, channels, width, bits, data]
        if start == [b"RIFF", b"WAVE", b"fmt ", 16, 1, 1, 2, 16, b"data"]:
            count = min(size, len(content) - _WAV_HEADER.size) // 2
            return torch.from_numpy(np.frombuffer(content, "<i2", count, _WAV_HEADER.size).astype(np.int16)), rate_hz
    samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return to_pcm(torch.from_numpy(samples.mean(axis=1, dtype=np.float32))), rate_hz


def decode_query_16k(content: bytes | memoryview) -> Tensor:
    """Return the samples of a query at 16 kHz, ``(S,) int16``."""
    samples, rate_hz = decode_query(content)
    if rate_hz == SAMPLE_RATE_HZ:
        return samples
    return torch.from_numpy(soxr.resample(samples.numpy(), rate_hz, SAMPLE_RATE_HZ))


def decode_units(content: bytes | memoryview) -> np.ndarray:
    """Return speech tokens, ``(T,) int64``."""
    return unpack_units(bytes(content)).astype(np.int64)


def decode_text(content: bytes | memoryview) -> dict[str, Any]:
    """Return `id`, `reply` and, if they are there, `transcript` and `history`."""
    return json.loads(bytes(content))


def decode_history(text: dict[str, Any], whole: memoryview) -> tuple[tuple[Turn, ...], list[memoryview]]:
    """Read the turns before the query.

    Args:
        text: The JSON of the example.
        whole: The bytes of the shard from the begin of the query to the end of the text.

    Returns:
        The turns, and the audio files of the spoken ones.

    Raises:
        DamagedExampleError: If an audio is not what was written.
    """
    turns, audios = [], []
    for place, entry in enumerate(text.get("history", ()), start=1):
        turns.append(Turn(entry["role"], entry.get("text"), is_spoken="audio" in entry))
        if "audio" in entry:
            begin, size, checksum = entry["audio"]
            audios.append(whole[begin : begin + size])
            if zlib.crc32(audios[-1]) != checksum:
                raise DamagedExampleError(f"the audio of its earlier turn {place} is damaged")
    return tuple(turns), audios
