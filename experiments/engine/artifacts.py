"""Trained parts of earlier runs, for later stages and for people."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from experiments.engine.builder import build
from experiments.engine.errors import ConfigError
from experiments.engine.runs import Run
from experiments.engine.stage import load_weights
from lightning_modules.errors import UserError


def load_trained(run: Path, attribute: str | None = None) -> Any:
    """Rebuild the module of a run from its saved configuration and load its newest weights.

    Args:
        run: A run directory.
        attribute: Dotted name of the part to return, for instance `talkers.ntp`; the whole module if not given.

    Returns:
        The module, or its part, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: The directory is no run directory, or has no checkpoint yet.
        UserError: The run has no module or no such attribute, or weights and module do not fit.
    """
    config_file = Path(run) / "config.yaml"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{run} is no run directory, it has no config.yaml; give one like runs/NAME/STAGE-1a2b3c4d"
        )
    config = OmegaConf.to_container(OmegaConf.load(config_file))
    assert isinstance(config, dict)
    if not config.get("module"):
        raise UserError(f"{run} is the run of a job and holds no module; give the run of a training stage")
    inputs = {old: Path(run).parent / Path(old).name for old in config.get("inputs", {}).values()}
    moved = {old: str(new) for old, new in inputs.items() if not Path(old).exists() and new.exists()}
    try:
        module = build(_with_paths(config["module"], moved), "module")
    except ConfigError as error:
        raise UserError(f"{config_file}: {error}") from error
    load_weights(module, Run(Path(run), config["fingerprint"]))
    if attribute is None:
        return module.eval()
    try:
        part = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise UserError(f"the module of {run} has no {attribute}: {error}") from error
    return part.eval() if isinstance(part, torch.nn.Module) else part


def _with_paths(node: Any, replacements: dict[str, str]) -> Any:
    """Replace the beginning of paths, so that a run can be read after all runs were moved together."""
    if isinstance(node, dict):
        return {key: _with_paths(value, replacements) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_paths(value, replacements) for value in node]
    for old, new in replacements.items():
        if isinstance(node, str) and (node == old or node.startswith(old + "/")):
            return new + node.removeprefix(old)
    return node
