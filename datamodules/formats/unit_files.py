"""Reads speech tokens from `.npy` files: plain arrays, and the pickled records of the released VocalNet sets."""

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_modules.errors import UserError

NUMBERS = frozenset(kind + size for kind in "iuf" for size in "1248") | {"b1"}
OBJECTS = frozenset(("O", "O8"))


class _Type:
    """Stands for an array's type while its pickle is read; the outermost array holds an object, the others numbers."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in NUMBERS | OBJECTS:
            raise pickle.UnpicklingError(f"it holds the type {name!r}, which is not a number")
        self.is_object, self.dtype = name in OBJECTS, np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands for an array while its pickle is read, since numpy itself trusts what a damaged one says, and crashes."""

    values: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, _, content = state
        self.values = content if dtype.is_object else _array(content, dtype, shape)


def _array(content: Any, dtype: Any, shape: Any) -> np.ndarray:
    return np.frombuffer(content, dtype.dtype).reshape(shape)  # raises ValueError if the sizes do not fit


_BUILDERS: dict[tuple[str, str], Any] = {
    ("multiarray", "_reconstruct"): lambda *_: _Array(),
    ("multiarray", "scalar"): lambda dtype, content: _array(content, dtype, (1,)),
    ("numeric", "_frombuffer"): lambda content, dtype, shape, _: _array(content, dtype, shape),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): lambda content: torch.load(io.BytesIO(content), weights_only=True),
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays and tensors, and runs no other code that a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for one of the few functions that rebuild arrays and tensors.

        Raises:
            pickle.UnpicklingError: If the file asks for anything else.
        """
        builder = _BUILDERS.get((module.removeprefix("numpy.core.").removeprefix("numpy._core."), name))
        if builder is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")
        return builder


def read_units(path: Path, num_codes: int | None = None) -> np.ndarray:
    """Read the speech tokens of one reply.

    Args:
        path: A `.npy` file with a 1-D integer array (or one with leading dimensions of size 1), or with a pickled
            `{"speech_token": (1, T), "speech_token_len": ...}`.
        num_codes: The size of the codebook; tokens are not checked if None.

    Returns:
        ``(T,) int64``.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it does not hold speech tokens, or a token lies outside of the codebook.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file of speech tokens; run the job that writes them") from None
    return parse_units(content, str(path), num_codes)


def parse_units(content: bytes, where: str, num_codes: int | None = None) -> np.ndarray:
    """Read the speech tokens of one reply from the content of its file; see :func:`read_units`.

    Args:
        content: That of a `.npy` file.
        where: What to call it in an error.
        num_codes: The size of the codebook; tokens are not checked if None.

    Returns:
        ``(T,) int64``.

    Raises:
        UserError: If it does not hold speech tokens, or a token lies outside of the codebook.
    """
    try:
        values = _load_array(io.BytesIO(content))
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{where}: not a readable .npy file of speech tokens ({error!r}); write it again") from error
    squeezed = values.reshape(values.shape[-1:]) if values.ndim > 1 and values.size == values.shape[-1] else values
    if squeezed.ndim != 1 or squeezed.size == 0:
        raise UserError(f"{where}: speech tokens have shape {values.shape}; expected a 1-D array that is not empty")
    if not np.issubdtype(squeezed.dtype, np.integer):
        raise UserError(
            f"{where}: speech tokens have type {squeezed.dtype}; expected integers, write them again as int32"
        )
    tokens = squeezed.astype(np.int64)
    if tokens.min() < 0 or (num_codes is not None and tokens.max() >= num_codes):
        size = "" if num_codes is None else f" of {num_codes} codes"
        raise UserError(
            f"{where}: speech tokens run from {tokens.min()} to {tokens.max()}, outside of the codebook{size}; "
            "make the tokens with the codec that the model is configured for"
        )
    return tokens


def _load_array(file) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read_header(file)
    if not dtype.hasobject:
        file.seek(0)
        return np.load(file, allow_pickle=False)
    (record,) = _ArraysOnly(file).load().values
    tokens = _values(record["speech_token"]).reshape(-1)
    return tokens[: int(_values(record.get("speech_token_len", tokens.size)).reshape(-1)[0])]


def _values(found: Any) -> np.ndarray:
    return np.asarray(found.values if isinstance(found, _Array) else found)
