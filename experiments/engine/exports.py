"""Exports: a system in one directory that needs no runs, read back as one module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file

from experiments.engine import artifacts
from experiments.engine.artifacts import Config, load_trained
from experiments.engine.configuration.builder import build
from experiments.engine.configuration.checks import is_spec
from lightning_modules.errors import UserError
from lightning_modules.pretrained.matching_weights import refuse_other_weights

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
PLACE = "${export}"  # stands for the directory of the export in its configuration
LOADER = f"{load_trained.__module__}.{load_trained.__name__}"


def self_contained_spec(run: Path, attribute: str | None = None) -> Config:
    """Describe a module of a run, or one part of it, without other runs.

    Args:
        run: A run directory.
        attribute: Dotted name of the part; the whole module if None.

    Returns:
        Its ``class_path`` and ``init_args``; where these name a trained part of another run, that part's own
        description stands in its place.

    Raises:
        FileNotFoundError: If a directory is no run directory.
        UserError: If a part is no part that a configuration describes.
    """
    config = artifacts.read_config(Path(run))
    node, _, depth = artifacts.nearest_node(config["module"], attribute.split(".") if attribute else [])
    rest = attribute.split(".")[depth:] if attribute else []
    if rest and not (is_spec(node) and node["class_path"] == LOADER):
        raise UserError(f"{run}: its configuration describes no {attribute}; export the run that it comes from")
    return cast(Config, _inlined(node, rest))


def _inlined(node: Any, rest: list[str]) -> Any:
    if is_spec(node) and node["class_path"] == LOADER:
        arguments = node["init_args"]
        names = [*filter(None, (arguments.get("attribute") or "").split(".")), *rest]
        return self_contained_spec(Path(arguments["run"]), ".".join(names) or None)
    if isinstance(node, dict):
        return {key: _inlined(value, []) for key, value in node.items()}
    return [_inlined(value, []) for value in node] if isinstance(node, list) else node


def from_export(path: str | Path) -> Any:
    """Read an export back.

    Args:
        path: The directory that a job :class:`~experiments.jobs.exporter.Exporter` has written.

    Returns:
        The module, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: If it is no export, or a file of it is missing.
        UserError: If it was written in another format, or weights and module do not fit.
    """
    folder = Path(path)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} is no export, it has no {CONFIG_FILE}; give what run.py export has written")
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{folder} has format {version}, this code reads {FORMAT_VERSION}; export the run again")
    module = build(_placed(config["module"], str(folder)), "module")
    for part, file in config["weights"].items():
        _load(module.get_submodule(part), folder / file)
    return module.eval()


def _placed(node: Any, folder: str) -> Any:
    if isinstance(node, dict):
        return {key: _placed(value, folder) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, folder) for value in node]
    return node.replace(PLACE, folder) if isinstance(node, str) else node


def _load(part: Any, file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy the whole export")
    weights = load_file(file)
    own = {key: value for key, value in part.state_dict().items() if ".lora_" not in key}
    renamed = {key.replace(".base_layer.", "."): key for key in own}  # the base of an adapter that is loaded beside it
    found = {key: value.shape for key, value in weights.items()}
    expected = {name: own[key].shape for name, key in renamed.items()}
    refuse_other_weights(expected, found, f"{file} does not fit", "export the run again")
    part.load_state_dict({renamed[key]: value for key, value in weights.items()}, strict=False)
