"""Single weights out of the files of a published checkpoint, without reading the rest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.pretrained.matching_weights import refuse_other_weights

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


def read_config_file(path: str | Path, what: str) -> dict[str, Any]:
    """Read the `config.json` of a checkpoint directory.

    Args:
        path: The directory.
        what: What is wanted of it, for errors.

    Raises:
        FileNotFoundError: If there is none.
        UserError: If it is not a JSON mapping.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{what}: there is no {file}; give the directory of a checkpoint with its config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{what}: {file} is not JSON ({error}); copy the checkpoint again") from error
    if not isinstance(config, dict):
        raise UserError(f"{what}: {file} holds a {type(config).__name__}, not a mapping; copy the checkpoint again")
    return config


class WeightFiles:
    """The weights in a checkpoint directory by their names, in one file or in shards, each read when it is asked for.

    Args:
        path: A directory with `model.safetensors` or `pytorch_model.bin`, or the index of its shards.
        what: What is wanted of it, for errors.

    Raises:
        FileNotFoundError: If there are no weights, or a shard is missing.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.path, self.what = Path(path), what
        self._pickled: dict[str, dict[str, Tensor]] = {}
        self._file_of = self._find()
        if missing := sorted(name for name in set(self._file_of.values()) if not (self.path / name).is_file()):
            raise FileNotFoundError(f"{what}: {self.path} lacks {missing}, which its index names; copy them, too")

    def _find(self) -> dict[str, str]:
        for file in (SAFETENSORS, PICKLED):
            index = self.path / f"{file}.index.json"
            if index.is_file():
                return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            if (self.path / file).is_file():
                return dict.fromkeys(self._names_in(file), file)
        raise FileNotFoundError(
            f"{self.what}: there is neither {SAFETENSORS} nor {PICKLED}, nor an index of shards, in {self.path}; give "
            "the directory of a checkpoint with its weights"
        )

    def _names_in(self, file: str) -> list[str]:
        if file.endswith(".safetensors"):
            with safe_open(self.path / file, framework="pt") as opened:
                return list(opened.keys())
        return list(self._load_pickled(file))

    def _load_pickled(self, file: str) -> dict[str, Tensor]:
        if file not in self._pickled:
            self._pickled[file] = torch.load(self.path / file, map_location="cpu", weights_only=True, mmap=True)
        return self._pickled[file]

    @property
    def names(self) -> set[str]:
        """Names of all weights."""
        return set(self._file_of)

    def num_rows(self, name: str) -> int:
        """Count the rows of a weight; see :meth:`read`."""
        file = self._file_with(name)
        if not file.endswith(".safetensors"):
            return len(self._load_pickled(file)[name])
        with safe_open(self.path / file, framework="pt") as opened:
            return int(opened.get_slice(name).get_shape()[0])

    def read(self, name: str, first: int = 0, end: int | None = None) -> Tensor:
        """Read a weight, or rows of it.

        Args:
            name: One of :attr:`names`.
            first: First row.
            end: Row behind the last one; to its end if None.

        Raises:
            UserError: If there is no such weight.
        """
        file = self._file_with(name)
        if not file.endswith(".safetensors"):
            return self._load_pickled(file)[name][first:end].clone()
        with safe_open(self.path / file, framework="pt") as opened:
            return opened.get_slice(name)[first:end]

    def _file_with(self, name: str) -> str:
        if name not in self._file_of:
            raise UserError(f"{self.what}: {self.path} has no weight {name!r}; give the whole checkpoint")
        return self._file_of[name]

    def read_all(self, prefix: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Read all weights with a prefix, in float32.

        Args:
            prefix: Beginning of their names, taken off in what is returned.
            shapes: Weights that must be there, and no others, by their names without the prefix.

        Raises:
            UserError: If any is missing, unexpected or of another shape, with its name.
        """
        names = [name for name in self.names if name.startswith(prefix)]
        what = f"{self.what}: the weights in {self.path} do not fit its config.json"
        remedy = "copy the checkpoint again, or give one of the same kind"
        expected = {prefix + name: shape for name, shape in shapes.items()}
        refuse_other_weights(expected, dict.fromkeys(names), what, remedy)
        weights = {name: self.read(prefix + name).float() for name in shapes}
        found = {prefix + name: value.shape for name, value in weights.items()}
        refuse_other_weights(expected, found, what, remedy)
        return weights
