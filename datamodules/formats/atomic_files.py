"""Files that are there whole or not at all: each is written beside its place, then moved there in one step.

Only the standard library is imported here, so that what starts quickly may use it, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a hidden path beside a file to write to, and move it to its place at the end.

    After an exception the file is as it was before, and nothing is left beside it. Only a process that is killed leaves
    its partial file behind; see :func:`remove_partial_files`.

    Args:
        path: The file to write; its folder must exist.

    Yields:
        Where to write, a path that no other process uses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left in a folder that nobody else writes to now."""
    for partial in folder.glob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    r"""Write a text as UTF-8; half of a surrogate pair, which UTF-8 does not know, becomes its escape, ``\ud800``."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write a value as indented JSON."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as a `.npy` file."""
    import numpy as np

    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
