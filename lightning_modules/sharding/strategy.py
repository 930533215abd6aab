"""Lightning's strategy for FSDP2, with checkpoints that hold what trains and fit any number of devices."""

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_modules.errors import UserError
from lightning_modules.sharding import sharded_files


class FullyShardedStrategy(ModelParallelStrategy):
    """Splits a :class:`ShardableModule` over all devices, by FSDP2.

    Args:
        gathered_checkpoints: Write checkpoints as one file, as all other strategies do: the first device gathers all
            that trains and its optimizer's state, 12 bytes per parameter. Otherwise a checkpoint is a directory into
            which each device writes its share. Both are read with any strategy and any number of devices.
    """

    def __init__(self, gathered_checkpoints: bool = False) -> None:
        super().__init__(save_distributed_checkpoint=not gathered_checkpoints)
        self.gathered_checkpoints = gathered_checkpoints

    def setup_environment(self) -> None:
        """Start the process group and lay out the devices in one dimension."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Give the weights that train, and the buffers."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters(remove_duplicate=False))
        state = self.lightning_module.state_dict()
        kept = {key: value for key, value in state.items() if key not in parameters or parameters[key].requires_grad}
        return self._for_checkpoint(kept)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Give the state of an optimizer, with the parameters numbered in the order of its groups."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return self._for_checkpoint(inner.state_dict())

    def _for_checkpoint(self, tree: Any) -> Any:
        """Gather split tensors if they go into one file; the first device alone keeps what it gathers."""
        if not self.gathered_checkpoints:
            return tree

        def gather(value: Any) -> Any:
            if isinstance(value, DTensor):
                value = value.full_tensor()
            return value.cpu() if isinstance(value, Tensor) and self.is_global_zero else value

        return tree_map(gather, tree)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint; called on all devices."""
        path = Path(self.broadcast(filepath))
        if self.is_global_zero:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self.gathered_checkpoints:
                path.mkdir()
        self.barrier("save_checkpoint")
        if not self.gathered_checkpoints:
            sharded_files.write(checkpoint, path, self.is_global_zero)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of either kind into module and optimizers; called on all devices.

        Returns:
            The checkpoint, for the hooks that check it and restore all else.

        Raises:
            UserError: If a weight has another shape in the module.
        """
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        places: dict[str, Tensor] = {}
        for key, value in self.lightning_module.state_dict().items():
            places[f"{sharded_files.WEIGHTS}.{key}"] = value
        parameters = [
            [one for group in optimizer.param_groups for one in group["params"]] for optimizer in self.optimizers
        ]

        def place_for(name: str, size: TensorStorageMetadata) -> Tensor | None:
            kind, *parts = name.split(".", 3)
            if kind == sharded_files.OPTIMIZER:
                if int(parts[0]) >= len(parameters) or int(parts[1]) >= len(parameters[int(parts[0])]):
                    return None  # a test restores no optimizer, and a module with fewer weights is refused by its hook
                return _like(parameters[int(parts[0])][int(parts[1])], size.size, size.properties.dtype)
            _check_shape(name, size.size, places)
            return places.get(name)

        if sharded_files.is_sharded(path):
            checkpoint = sharded_files.read(path, place_for, weights_only, is_alone=False)
            for name in sharded_files.sizes(path):  # what has no place here is named, so that it can be refused
                kind, _, key = name.partition(".")
                if kind == sharded_files.WEIGHTS:
                    checkpoint[kind].setdefault(key, torch.empty(0))
        else:
            checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
            for key, value in checkpoint[sharded_files.WEIGHTS].items():
                name = f"{sharded_files.WEIGHTS}.{key}"
                _check_shape(name, value.shape, places)
                if name in places:
                    places[name].copy_(_split_like(places[name], value))
        for index, (optimizer, state) in enumerate(
            zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False)
        ):
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            if len(numbers) != len(parameters[index]):
                continue  # the module's hook refuses the weights, with their names
            by_number = dict(zip(numbers, parameters[index], strict=True))
            split = {
                number: {name: _split_like(by_number[number], value) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": split})
        return checkpoint


class AnyCheckpointIO(TorchCheckpointIO):
    """Reads checkpoints of both kinds into one process, for strategies that split nothing."""

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint."""
        if sharded_files.is_sharded(Path(path)):
            return sharded_files.read_whole(Path(path), weights_only=weights_only)
        return super().load_checkpoint(path, map_location, weights_only)


def _check_shape(name: str, shape: torch.Size, places: dict[str, Tensor]) -> None:
    if name in places and places[name].shape != shape:
        raise UserError(
            f"the checkpoint does not fit this module: {name} has the shape {tuple(shape)} there, "
            f"{tuple(places[name].shape)} here; start a new run, or give the configuration that it was trained with"
        )


def _like(parameter: Tensor, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Make room for a tensor of an optimizer, split as its parameter is if it has its shape."""
    if size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype)
    return torch.empty(size, dtype=dtype, device="cpu")


def _split_like(place: Tensor, value: Any) -> Any:
    """Split a whole tensor as another one of its shape is split; leave any other as it is."""
    is_whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not is_whole or not isinstance(place, DTensor) or value.shape != place.shape:
        return value
    whole = value.to(place.device)
    return distribute_tensor(whole, place.device_mesh, place.placements, src_data_rank=None)
