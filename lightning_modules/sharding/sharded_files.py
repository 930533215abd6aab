"""Checkpoints as directories in which each device has written its share, and their reading in one process.

A directory holds what `torch.distributed.checkpoint` writes, with weights as `state_dict.<name>` and the optimizers'
tensors as `optimizer.<index>.<number of the parameter>.<name>`, and all else in one file. It is read by any number of
devices, and becomes the dictionary that a checkpoint file holds.
"""

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lightning_modules.errors import UserError

REST_FILE = "rest.pt"
WEIGHTS, OPTIMIZER = "state_dict", "optimizer"


def is_sharded(path: Path) -> bool:
    """Tell whether a checkpoint is a directory of shares."""
    return (path / REST_FILE).is_file()


def write(checkpoint: Mapping[str, Any], path: Path, is_first: bool) -> None:
    """Write the share of this device; called on all of them.

    Args:
        checkpoint: As Lightning dumps it; tensors of weights and optimizers may be split.
        path: The directory, which is there and empty.
        is_first: Whether to write what is no tensor, too.
    """
    rest = dict(checkpoint)
    tensors = {f"{WEIGHTS}.{key}": value for key, value in rest.pop(WEIGHTS).items()}
    optimizers = []
    for index, state in enumerate(rest.pop("optimizer_states", [])):
        optimizers.append({"param_groups": state["param_groups"]})
        for number, values in state["state"].items():
            tensors |= {f"{OPTIMIZER}.{index}.{number}.{name}": value for name, value in values.items()}
    with _one_process_is_meant():
        dcp.save(tensors, checkpoint_id=path, no_dist=not distributed.is_initialized())
    if is_first:
        torch.save({**rest, "optimizer_states": optimizers}, path / REST_FILE)


def sizes(path: Path) -> dict[str, TensorStorageMetadata]:
    """Give size and type of each tensor in a checkpoint, by its name there.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return dict(dcp.FileSystemReader(path).read_metadata().state_dict_metadata)  # type: ignore[arg-type]
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"the checkpoint {path} is damaged ({error}); train that run again") from error


def read(
    path: Path,
    place_for: Callable[[str, TensorStorageMetadata], Tensor | None],
    weights_only: bool | None = True,
    is_alone: bool = True,
) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: The directory.
        place_for: Gives the tensor, split or whole, to read one of that name into; None leaves it out.
        weights_only: As of ``torch.load``.
        is_alone: Whether this process reads alone, and not together with others.

    Returns:
        The dictionary of a checkpoint file, with the places in it.
    """
    places = {name: place_for(name, size) for name, size in sizes(path).items()}
    found = {name: place for name, place in places.items() if place is not None}
    with _one_process_is_meant():
        dcp.load(found, checkpoint_id=path, no_dist=is_alone)
    checkpoint: dict[str, Any] = torch.load(path / REST_FILE, map_location="cpu", weights_only=weights_only)
    for state in checkpoint["optimizer_states"]:
        state["state"] = {}
    checkpoint[WEIGHTS] = {}
    for name, value in found.items():
        kind, _, key = name.partition(".")
        if kind == WEIGHTS:
            checkpoint[WEIGHTS][key] = value
        else:
            index, number, entry = key.split(".", 2)
            checkpoint["optimizer_states"][int(index)]["state"].setdefault(int(number), {})[entry] = value
    return checkpoint


def read_whole(path: Path, prefix: str | None = None, weights_only: bool | None = True) -> dict[str, Any]:
    """Read a checkpoint into the memory of this process alone.

    Args:
        path: The directory.
        prefix: Read only weights whose names begin so, and no state of optimizers; None for all.
        weights_only: As of ``torch.load``.

    Returns:
        The dictionary that a checkpoint file would hold.
    """

    def place_for(name: str, size: TensorStorageMetadata) -> Tensor | None:
        if prefix is not None and not name.startswith(f"{WEIGHTS}.{prefix}"):
            return None
        return torch.empty(size.size, dtype=size.properties.dtype, device="cpu")

    return read(path, place_for, weights_only)


@contextlib.contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Keep torch from warning where one process reads or writes alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield
