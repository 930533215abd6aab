"""Writes arrays so that a file is there whole or not at all."""

import os
from pathlib import Path

import numpy as np


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a `.npy` file by way of a `.partial` one; the folder must exist."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    os.replace(partial, path)
