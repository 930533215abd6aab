"""Spoken dialogues in tar shards of the WebDataset layout, each with an index of where everything lies.

An example is three consecutive members with one key: `<key>.wav` or `<key>.flac` (the query, the bytes of its file),
`<key>.npy` (the reply's speech tokens, ``(T,) int32``) and `<key>.json` (`id`, `reply`, and `transcript` if there is
one). Any tool that reads tar files can read them; with the index, a part is one read of a byte range. Spoken turns
before the query follow it as `<key>.history0.wav`, ...; `history` in the JSON says where. The index knows nothing of
them: whoever reads an example from its query to its text reads what lies between.
"""

import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from datamodules.formats.atomic_files import replacing
from datamodules.shards.columns import joined_shard_of, read_columns
from lightning_modules.dialogue import Turn

PARTS = ("query", "units", "text")

# what a converted corpus holds: its index, and the folder of its shards
INDEX, SHARDS = "index.npz", "shards"


@dataclass(frozen=True)
class ShardIndex:
    """Where the examples of a corpus lie, and what a plan must know of them; one row per example.

    Attributes:
        ids: Names, ``(N,) str``.
        shards: File names of the shards, ``(S,) str``.
        shard_of: Shard of each example, ``(N,) int32``.
        sets: Names of the sets that examples come from, ``(M,) str``.
        set_of: Set of each example, ``(N,) int32``.
        offsets: Begin of query, units and text in the shard, ``(N, 3) int64``, in bytes.
        sizes: Their lengths, ``(N, 3) int64``, in bytes.
        checksums: Their CRC-32, ``(N, 3) uint32``.
        query_s: Seconds of the query, ``(N,) float32``.
        num_units: Speech tokens of the reply, ``(N,) int32``.
        num_text_tokens: Text tokens of the reply, ``(N,) int32``; -1 where they were not counted.
    """

    ids: np.ndarray
    shards: np.ndarray
    shard_of: np.ndarray
    sets: np.ndarray
    set_of: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray
    query_s: np.ndarray
    num_units: np.ndarray
    num_text_tokens: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Self:
        """Return the index of some examples, in their order."""
        of_corpus = ("shards", "sets")
        return replace(self, **{name: values[rows] for name, values in vars(self).items() if name not in of_corpus})

    def save(self, path: Path) -> None:
        """Write the index as one `.npz`."""
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an index.

        Raises:
            FileNotFoundError: If there is none.
            UserError: If it is damaged.
        """
        try:
            with path.open("rb") as file:
                return cls.read(file, str(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no index of shards; convert the corpus") from None

    @classmethod
    def read(cls, file: BinaryIO, name: str) -> Self:
        """Read an index from an open file; `name` is what errors call it.

        Raises:
            UserError: If it is damaged.
        """
        return read_columns(cls, file, f"{name}: the index of shards", "convert the corpus again")

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate indices; each has shards of its own, but they may share sets."""
        joined = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        sets = np.unique(joined["sets"])
        set_of = [np.searchsorted(sets, part.sets)[part.set_of] for part in parts]
        joined |= {
            "shard_of": joined_shard_of([len(part.shards) for part in parts], [part.shard_of for part in parts]),
            "sets": sets,
        }
        return cls(**{**joined, "set_of": np.concatenate(set_of).astype(np.int32)})


def pack_units(units: np.ndarray) -> bytes:
    """Return the content of a `.npy` file of ``(T,) int32``."""
    content = io.BytesIO()
    np.save(content, units.astype("<i4"), allow_pickle=False)
    return content.getvalue()


_UNITS_HEADER = pack_units(np.zeros(0, dtype=np.int32)).split(b"(0,)")[0]


def unpack_units(content: bytes) -> np.ndarray:
    """Read the content of a `.npy` file; a header as this module writes it is not parsed, which would take longest.

    Raises:
        ValueError: If it is not a `.npy` file.
    """
    if content.startswith(_UNITS_HEADER):
        return np.frombuffer(content, dtype="<i4", offset=10 + int.from_bytes(content[8:10], "little"))
    return np.load(io.BytesIO(content), allow_pickle=False)


@dataclass(frozen=True)
class PackedExample:
    """One example as it goes into a shard.

    Attributes:
        id: Its name.
        set_name: The set that it comes from.
        query: Bytes of the query's audio file.
        extension: "wav" or "flac".
        query_s: Its seconds.
        units: Speech tokens, ``(T,) int32``.
        reply: The reply as text.
        transcript: The query as text, if known.
        num_text_tokens: Text tokens of the reply; -1 if they were not counted.
        history: Turns before the query, the oldest first.
        history_audio: Bytes and extension of the audio files of its spoken turns.
    """

    id: str
    set_name: str
    query: bytes
    extension: str
    query_s: float
    units: np.ndarray
    reply: str
    transcript: str | None = None
    num_text_tokens: int = -1
    history: tuple[Turn, ...] = ()
    history_audio: tuple[tuple[bytes, str], ...] = ()


class ShardWriter:
    """Appends examples to one shard and remembers where they lie; see :meth:`create`.

    Args:
        tar: The shard, open for writing.
        name: The file name of the shard.
    """

    def __init__(self, tar: tarfile.TarFile, name: str) -> None:
        self._tar, self._name = tar, name
        self._rows: list[tuple[str, str, list[tuple[int, int, int]], float, int, int]] = []

    @classmethod
    @contextmanager
    def create(cls, path: Path) -> Iterator[Self]:
        """Give a writer; its shard and index appear when the context ends without an error, the shard last.

        Args:
            path: `<name>.tar`; the index is written beside it as `<name>.npz`.

        Yields:
            The writer.
        """
        with replacing(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            writer = cls(tar, path.name)
            yield writer
            writer._index().save(path.with_suffix(".npz"))

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return self._tar.offset

    def write(self, key: str, example: PackedExample) -> None:
        """Append an example under a key without a dot, unique in the corpus."""
        text: dict[str, Any] = {"id": example.id, "reply": example.reply}
        if example.transcript is not None:
            text["transcript"] = example.transcript
        query = self._append(f"{key}.{example.extension}", example.query)
        spoken = [
            self._append(f"{key}.history{place}.{extension}", content)
            for place, (content, extension) in enumerate(example.history_audio)
        ]
        if example.history:
            text["history"] = _describe_history(example.history, spoken, query[0])
        units = self._append(f"{key}.npy", pack_units(example.units))
        places = [query, units, self._append(f"{key}.json", json.dumps(text, ensure_ascii=False).encode())]
        lengths = example.query_s, len(example.units), example.num_text_tokens
        self._rows.append((example.id, example.set_name, places, *lengths))

    def _append(self, name: str, content: bytes) -> tuple[int, int, int]:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        begin = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(content))
        return begin, len(content), zlib.crc32(content)

    def _index(self) -> ShardIndex:
        columns = zip(*self._rows, strict=True) if self._rows else ([],) * 6
        ids, names, places, seconds, num_units, num_text_tokens = columns
        sets, set_of = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
        begin, size, checksum = np.array(places, dtype=np.int64).reshape(-1, len(PARTS), 3).transpose(2, 0, 1)
        return ShardIndex(
            ids=np.array(ids, dtype=np.str_),
            shards=np.array([self._name]),
            shard_of=np.zeros(len(ids), dtype=np.int32),
            sets=sets,
            set_of=set_of.astype(np.int32),
            offsets=begin,
            sizes=size,
            checksums=checksum.astype(np.uint32),
            query_s=np.array(seconds, dtype=np.float32),
            num_units=np.array(num_units, dtype=np.int32),
            num_text_tokens=np.array(num_text_tokens, dtype=np.int32),
        )


def _describe_history(
    turns: Sequence[Turn], spoken: Sequence[tuple[int, int, int]], begin: int
) -> list[dict[str, Any]]:
    """Describe turns for the JSON of an example.

    Args:
        turns: Turns before the query, the oldest first.
        spoken: For each spoken one, where its audio begins in the shard, its size and its CRC-32.
        begin: Where the query begins in the shard.

    Returns:
        For each turn `role`, `text` if it is known, and `audio` if it is spoken: begin, counted from that of the query,
        size and CRC-32.
    """
    places = iter(spoken)
    described: list[dict[str, Any]] = []
    for turn in turns:
        text = {} if turn.text is None else {"text": turn.text}
        audio = {}
        if turn.is_spoken:
            offset, size, checksum = next(places)
            audio = {"audio": [offset - begin, size, checksum]}
        described.append({"role": turn.role, **text, **audio})
    return described
