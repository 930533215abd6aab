"""Text states in shards beside the speech, with an index of where they lie and of the thinker that wrote them.

An example is one stretch of a file `shards/<name>.bin`: the ids of its text tokens, ``(N,) int32``, then the hidden
state that predicted each, ``(N, hidden_size) bfloat16``, little-endian and with nothing between examples. Embeddings
are not stored: the thinker looks them up.
"""

import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from datamodules.formats.atomic_files import replacing
from datamodules.shards.columns import joined_shard_of, read_columns

# the folder that holds the index and the shards of the text states of a corpus
TEXT_STATES = "text_states"

ID_BYTES, HIDDEN_BYTES = 4, 2
_OF_ALL = ("shards", "thinker", "hidden_size")
_WRITE_AGAIN = "run the stage text_states again with --force"


def bytes_per_token(hidden_size: int) -> int:
    """Return what one text token takes: its id and its hidden state."""
    return ID_BYTES + HIDDEN_BYTES * hidden_size


@dataclass(frozen=True)
class TextStateIndex:
    """Where the text states of examples lie; one row per example.

    Attributes:
        ids: Names, ``(N,) str``.
        shards: File names of the shards, ``(S,) str``.
        shard_of: Shard of each example, ``(N,) int32``.
        offsets: Begin in the shard, ``(N,) int64``, in bytes.
        num_tokens: Text tokens, ``(N,) int32``.
        checksums: CRC-32 of the reply's text and the bytes stored, ``(N,) uint32``.
        thinker: Digest of the thinker that wrote them, ``() str``.
        hidden_size: Width of a hidden state, ``() int64``.
    """

    ids: np.ndarray
    shards: np.ndarray
    shard_of: np.ndarray
    offsets: np.ndarray
    num_tokens: np.ndarray
    checksums: np.ndarray
    thinker: np.ndarray
    hidden_size: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        """Bytes of all token ids and hidden states."""
        return int(self.num_tokens.sum(dtype=np.int64)) * bytes_per_token(int(self.hidden_size))

    def take(self, rows: np.ndarray) -> Self:
        """Return the index of some examples, in their order."""
        return replace(self, **{name: values[rows] for name, values in vars(self).items() if name not in _OF_ALL})

    def of_examples(self, ids: Sequence[str] | np.ndarray, where: str) -> Self:
        """Return the index of the examples of a corpus, in the order of the corpus.

        Args:
            ids: Their names.
            where: What to call the corpus in an error.

        Raises:
            FileNotFoundError: If an example has no text states.
        """
        wanted = np.asarray(ids, dtype=np.str_)
        order = np.argsort(self.ids, kind="stable")
        places = np.searchsorted(self.ids, wanted, sorter=order)
        rows = order[np.minimum(places, len(self) - 1)]
        is_missing = self.ids[rows] != wanted
        if is_missing.any():
            raise FileNotFoundError(
                f"{where}, item {str(wanted[is_missing][0])!r}: has no text states, nor have "
                f"{int(is_missing.sum()) - 1} others of {len(wanted)}; set text_states_root, or text_states of the "
                "sharded set, to the run that wrote those of this corpus"
            )
        return self.take(rows)

    def save(self, path: Path) -> None:
        """Write the index as one compressed `.npz`."""
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **vars(self))

    @classmethod
    def read(cls, file: BinaryIO, name: str) -> Self:
        """Read an index from an open file; `name` is what errors call it.

        Raises:
            UserError: If it is damaged.
        """
        return read_columns(cls, file, f"{name}: the index of text states", _WRITE_AGAIN)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an index from a file.

        Raises:
            UserError: If it is damaged.
        """
        return cls.read(io.BytesIO(path.read_bytes()), str(path))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate indices of shards that one thinker wrote."""
        assert len({(str(part.thinker), int(part.hidden_size)) for part in parts}) == 1
        names = [one.name for one in fields(cls) if one.name not in ("thinker", "hidden_size")]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        joined["shard_of"] = joined_shard_of([len(part.shards) for part in parts], [part.shard_of for part in parts])
        return cls(**joined, thinker=parts[0].thinker, hidden_size=parts[0].hidden_size)


def checksum(reply: str, content: bytes | memoryview) -> int:
    """Return the CRC-32 of text states, which differs if they are damaged or were written for another reply."""
    return zlib.crc32(content, zlib.crc32(reply.encode("utf-8", "surrogatepass")))


class StateShardWriter:
    """Appends the text states of examples to one shard and remembers where they lie; see :meth:`create`.

    Args:
        file: The shard, open for writing.
        name: Its file name.
        thinker: Digest of the thinker that gives the states.
        hidden_size: Width of a hidden state.
    """

    def __init__(self, file: BinaryIO, name: str, thinker: str, hidden_size: int) -> None:
        self._file, self._name, self._thinker, self._hidden_size = file, name, thinker, hidden_size
        self._rows: list[tuple[str, int, int, int]] = []

    @classmethod
    @contextmanager
    def create(cls, path: Path, thinker: str, hidden_size: int) -> Iterator[Self]:
        """Give a writer; its shard and index appear when the context ends without an error, the index last.

        Args:
            path: `<name>.bin`; the index is written beside it as `<name>.npz`.
            thinker: Digest of the thinker that gives the states.
            hidden_size: Width of a hidden state.

        Yields:
            The writer.
        """
        with replacing(path) as partial, partial.open("wb") as file:
            writer = cls(file, path.name, thinker, hidden_size)
            yield writer
        writer._index().save(path.with_suffix(".npz"))

    def write(self, name: str, reply: str, token_ids: np.ndarray, hidden_bits: np.ndarray) -> None:
        """Append the states of an example.

        Args:
            name: Its name.
            reply: The text that the tokens are of.
            token_ids: ``(N,)`` integers.
            hidden_bits: Hidden states, ``(N, hidden_size) uint16``, the bits of bfloat16.
        """
        assert hidden_bits.dtype == np.uint16 and hidden_bits.shape == (len(token_ids), self._hidden_size)
        content = token_ids.astype("<i4").tobytes() + hidden_bits.astype("<u2", copy=False).tobytes()
        self._rows.append((name, self._file.tell(), len(token_ids), checksum(reply, content)))
        self._file.write(content)

    def _index(self) -> TextStateIndex:
        ids, offsets, num_tokens, checksums = zip(*self._rows, strict=True) if self._rows else ([],) * 4
        return TextStateIndex(
            ids=np.array(ids, dtype=np.str_),
            shards=np.array([self._name]),
            shard_of=np.zeros(len(ids), dtype=np.int32),
            offsets=np.array(offsets, dtype=np.int64),
            num_tokens=np.array(num_tokens, dtype=np.int32),
            checksums=np.array(checksums, dtype=np.uint32),
            thinker=np.array(self._thinker),
            hidden_size=np.array(self._hidden_size),
        )
