"""Columns of an index: a dataclass of arrays in one `.npz`, with shards of its own."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import fields
from typing import BinaryIO, TypeVar

import numpy as np

from lightning_modules.errors import UserError

_Index = TypeVar("_Index")


def read_columns(kind: type[_Index], file: BinaryIO, what: str, remedy: str) -> _Index:
    """Read an index from an open `.npz`.

    Args:
        kind: Its dataclass, whose fields are the columns.
        file: Open for reading.
        what: What an error calls it.
        remedy: What to do if it is damaged.

    Raises:
        UserError: If it is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            return kind(**{one.name: stored[one.name] for one in fields(kind)})  # type: ignore[arg-type]
    except (ValueError, KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{what} is damaged ({error}); {remedy}") from error


def joined_shard_of(num_shards: Sequence[int], shard_of: Sequence[np.ndarray]) -> np.ndarray:
    """Count the shards of several indices as one, and find that of each example.

    Args:
        num_shards: Shards of each index.
        shard_of: Of each index, the shard of each example among its own.

    Returns:
        The shard of each example among all, ``(N,) int32``.
    """
    firsts = np.cumsum([0, *num_shards[:-1]])
    return np.concatenate([own + first for own, first in zip(shard_of, firsts, strict=True)]).astype(np.int32)
