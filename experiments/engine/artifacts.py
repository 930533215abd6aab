"""Trained parts of earlier runs, for later stages and for people."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from omegaconf import OmegaConf
from torch import nn

from experiments.engine.configuration.builder import build
from experiments.engine.configuration.checks import is_spec, resolve_class_path
from experiments.engine.configuration.errors import ConfigError, join
from experiments.engine.runs import Run
from lightning_modules.errors import UserError
from lightning_modules.pretrained.matching_weights import refuse_other_weights
from lightning_modules.sharding import sharded_files
from lightning_modules.training.checkpoints import LEFT_OUT

Config = dict[str, Any]


@dataclass
class _Planned:
    """Configurations by run directory, and the parts that were built from them already."""

    configs: Mapping[Path, Config]
    parts: dict[tuple[Path, str | None], Any] = field(default_factory=dict)


_planned: ContextVar[_Planned | None] = ContextVar("planned", default=None)


def load_trained(run: Path, attribute: str | None = None) -> Any:
    """Rebuild a module of a run, or one part of it, from the run's saved configuration and load its newest weights.

    Only what was asked for is built, if constructors keep the part under the name of the argument that it was given
    as: `talkers.ntp` is built from `module.init_args.talkers.ntp`. A part that was trained by LoRA comes with its
    matrices, which act. What is drawn at random afterwards does not depend on what was loaded.

    Args:
        run: A run directory.
        attribute: Dotted name of the part to return, for instance `talkers.ntp`; the whole module if not given.

    Returns:
        The module, or its part, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: The directory is no run directory, or has no checkpoint yet.
        UserError: The run has no module or no such attribute, or weights and module do not fit.
    """
    run = Path(run)
    planned = _planned.get()
    if planned is None:
        return _part_of(run, read_config(run), attribute, is_trained=True)
    if (run, attribute) not in planned.parts:
        config = planned.configs[run] if run in planned.configs else read_config(run)
        planned.parts[run, attribute] = _part_of(run, config, attribute, is_trained=False)
    return copy.deepcopy(planned.parts[run, attribute])  # whoever gets a part may change it


def is_planning() -> bool:
    """Tell whether parts are built without weights now, before the stages that make these have run."""
    return _planned.get() is not None


@contextlib.contextmanager
def without_weights(planned: Mapping[Path, Config]) -> Iterator[None]:
    """Within this context, let `load_trained` read no weights.

    Args:
        planned: Resolved configurations by run directory, for runs that need not be there yet; any other run is built
            from its saved configuration.
    """
    token = _planned.set(_Planned(planned))
    try:
        yield
    finally:
        _planned.reset(token)


def _part_of(run: Path, config: Config, attribute: str | None, is_trained: bool) -> Any:
    name = run if is_trained else run.name  # the directory of a planned run need not be there to look into
    if not config.get("module"):
        raise UserError(f"{name} is the run of a job and holds no module; give the run of a training stage")
    names = attribute.split(".") if attribute is not None else []
    try:
        node, path, depth = nearest_node(config["module"], names)
        with torch.random.fork_rng(devices=[]):
            part = build(node, path)
    except ConfigError as error:
        raise UserError(f"{name}: {error}") from error
    if is_trained and config.get("fit", True):  # a run that only tests has its weights from others
        is_loaded = load_weights(part, Run(run, config["fingerprint"]), "".join(f"{one}." for one in names[:depth]))
        if not is_loaded:  # the whole module puts the LoRA matrices where they were trained
            part, depth = _part_of(run, config, None, is_trained), 0
    try:
        part = operator.attrgetter(".".join(names[depth:]))(part) if names[depth:] else part
    except AttributeError as error:
        raise UserError(f"the module of {name} has no {attribute}: {error}; name one of its parts") from error
    return part.eval() if isinstance(part, nn.Module) else part


def load_weights(module: Any, run: Run, prefix: str = "") -> bool:
    """Load weights of a run's newest checkpoint.

    Weights that the checkpoint lists under `left_out` may be missing: they do not train, and come from where the module
    got them. Any other difference is an error.

    Args:
        module: The module of the run, or the part of it whose weights are stored with the prefix.
        run: A run with a checkpoint.
        prefix: Beginning of the names of the weights, with its dot; empty for the whole module.

    Returns:
        False, and nothing is loaded, if the weights of a part are those of LoRA and the part is built without.

    Raises:
        FileNotFoundError: The run has no checkpoint.
        UserError: The weights do not fit the module.
    """
    file = run.checkpoint_file
    if not file.exists():
        raise FileNotFoundError(f"there is no checkpoint {file}; train that run first, or give another run")
    if not isinstance(module, nn.Module):
        return True
    checkpoint = read_checkpoint(file, prefix)
    if not prefix and isinstance(module, LightningModule):
        module.on_load_checkpoint(checkpoint)
    weights = {key[len(prefix) :]: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
    own = {prefix + key: value.shape for key, value in module.state_dict().items()}
    if prefix and _has_lora(weights) and not _has_lora(own):
        return False
    left_out = set(checkpoint.get(LEFT_OUT, ()))
    expected = {key: shape for key, shape in own.items() if key.removeprefix(prefix) in weights or key not in left_out}
    found = {prefix + key: value.shape for key, value in weights.items()}
    refuse_other_weights(expected, found, f"{file} does not fit its module", "train that run again")
    module.load_state_dict(weights, strict=False)
    return True


def read_checkpoint(file: Path, prefix: str = "") -> dict[str, Any]:
    """Read a checkpoint on the CPU, whether it is one file or in shards; of shards, the weights with a prefix alone."""
    if sharded_files.is_sharded(file):
        return sharded_files.read_whole(file, prefix)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _has_lora(names: Iterable[str]) -> bool:
    return any(".lora_" in name for name in names)


def nearest_node(module: Config, names: list[str]) -> tuple[Config, str, int]:
    """Find the description of an attribute of a module, or of the innermost object on the way to it.

    Returns:
        The description, its YAML path, and how many of the names lead to it.
    """
    node, path, found = module, "module", (module, "module", 0)
    for depth, name in enumerate(names, start=1):
        if is_spec(node):
            if not isinstance(resolve_class_path(node["class_path"], path), type):
                break  # what a function returns need not have attributes named after its arguments
            node, path = node.get("init_args") or {}, join(path, "init_args")
        if not isinstance(node, dict) or name not in node:
            break
        node, path = node[name], join(path, name)
        if is_spec(node):
            found = node, path, depth
    return found


def read_config(run: Path) -> Config:
    """Read the saved configuration of a run, its paths changed if all runs were moved together since."""
    file = run / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"{run} is no run directory, it has no config.yaml; give one like runs/NAME/STAGE-1a2b3c4d"
        )
    config = cast(Config, OmegaConf.to_container(OmegaConf.load(file)))
    inputs = {old: run.parent / Path(old).name for old in config.get("inputs", {}).values()}
    moved = {old: str(new) for old, new in inputs.items() if not Path(old).exists() and new.exists()}
    return {**config, **{key: _with_paths(config.get(key), moved) for key in ("module", "datamodule", "callbacks")}}


def _with_paths(node: Any, replacements: dict[str, str]) -> Any:
    """Replace the beginning of paths."""
    if isinstance(node, dict):
        return {key: _with_paths(value, replacements) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_paths(value, replacements) for value in node]
    for old, new in replacements.items():
        if isinstance(node, str) and (node == old or node.startswith(old + "/")):
            return new + node.removeprefix(old)
    return node
