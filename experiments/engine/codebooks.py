"""Sizes of codebooks that are left out of a stage: they follow from the codec of its speech tokens."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from datamodules.formats.codec_record import read_codec_record
from experiments.engine.artifacts import Config, nearest_node, read_config, without_weights
from experiments.engine.configuration.builder import build
from experiments.engine.configuration.checks import is_spec, parameters_of, resolve_class_path
from experiments.engine.configuration.errors import ConfigError, join
from experiments.engine.exports import LOADER
from lightning_modules.token_format import TokenFormat

ARGUMENT = "num_codes"
Place = tuple[str | int, ...]


def with_codebook_size(configs: Sequence[Config], planned: Mapping[Path, Config], path: str) -> list[Config]:
    """Give the objects of a stage's module that need ``num_codes`` the size of its speech tokens' codebook.

    It stands in the `codec.json` beside tokens that are there. Tokens that are still to be written will be those of the
    codec that their job is given, or of the tokens that it is given.

    Args:
        configs: The resolved configuration of the stage, and others with the same module, which get the same.
        planned: Configurations of stages before it, by run directory.
        path: YAML path of the stage, for errors.

    Returns:
        The configurations, filled in where the size was left out.

    Raises:
        ConfigError: If it was left out and no input tells the codec, or two tell different sizes; if it was given and
            is not that of the codec.
    """
    config = configs[0]
    places = [place for place, node in _specs(config["module"], ("module",)) if _takes_size(node)]
    if not places:
        return list(configs)
    with torch.device("meta"), without_weights(planned):
        formats = {name: _format_of_input(Path(one), planned) for name, one in config["inputs"].items()}
    found = {name: one.codebook_size for name, one in formats.items() if one is not None}
    told = ", ".join(f"inputs.{name}: {size}" for name, size in found.items())
    size = next(iter(found.values())) if len(set(found.values())) == 1 else None
    given = {place: _at(config, place).get(ARGUMENT) for place in places}
    for place, one in given.items():
        where = join(path, ".".join(map(str, (*place, ARGUMENT))))
        if one is None and size is None:
            why = f"the inputs have codebooks of different sizes ({told})" if found else "no input tells the codec"
            raise ConfigError(where, f"the size of the codebook is left out, and {why}; give it")
        if isinstance(one, int) and size not in (None, one):
            raise ConfigError(where, f"{one} is not the size of the codec ({told}); set it to {size}, or leave it out")
    filled = [{**one, "module": copy.deepcopy(one["module"])} for one in configs]
    for place in (place for place, one in given.items() if one is None):
        for one in filled:
            _at(one, place)[ARGUMENT] = size
    return filled


def _at(config: Config, place: Place) -> Config:
    return cast(Config, functools.reduce(operator.getitem, place, cast(Any, config)))


def _specs(node: Any, place: Place) -> Iterator[tuple[Place, Config]]:
    if is_spec(node):
        yield (*place, "init_args"), node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _specs(value, (*place, key))


def _takes_size(node: Config) -> bool:
    if not isinstance(node.get("init_args"), dict):
        return False
    try:
        parameters = parameters_of(resolve_class_path(node["class_path"], ""))
    except ConfigError:
        return False  # told by the check of the whole stage
    parameter = parameters.get(ARGUMENT)
    return parameter is not None and parameter.default is parameter.empty


def planned_formats(config: Config, planned: Mapping[Path, Config]) -> dict[str, TokenFormat]:
    """Tell of what codec the speech tokens will be that earlier stages write for a stage.

    Args:
        config: The resolved configuration of the stage.
        planned: Configurations of stages before it, by run directory.

    Returns:
        Their formats, by the inputs' names; inputs that hold no tokens are left out.
    """
    runs = {f"inputs.{name}": Path(one) for name, one in config["inputs"].items()}
    jobs = {name: run for name, run in runs.items() if (planned.get(run) or {}).get("job")}
    with torch.device("meta"), without_weights(planned):
        return {name: found for name, run in jobs.items() if (found := _format_of_input(run, planned))}


def _format_of_input(folder: Path, planned: Mapping[Path, Config]) -> TokenFormat | None:
    """Tell the codec of a run, or another folder or file; None if it has nothing to do with one."""
    if folder in planned:
        config = planned[folder]
    else:
        if not folder.is_dir():
            return None
        if (record := read_codec_record(str(folder))) is not None:
            return record
        if not (folder / "config.yaml").is_file():
            return None
        config = read_config(folder)
    if config.get("module"):
        return _format_of_codec({"class_path": LOADER, "init_args": {"run": str(folder)}}, planned)
    arguments = (config.get("job") or {}).get("init_args") or {}
    of_codecs = (_format_of_codec(value, planned) for value in arguments.values() if is_spec(value))
    of_inputs = (_format_of_input(Path(one), planned) for one in (config.get("inputs") or {}).values())
    return next((found for formats in (of_codecs, of_inputs) for found in formats if found), None)


def _format_of_codec(spec: Config, planned: Mapping[Path, Config]) -> TokenFormat | None:
    """Build a codec without weights and ask it; None if what is described is none."""
    described, path = spec, ""
    while described["class_path"] == LOADER:
        arguments = described["init_args"]
        run, attribute = Path(arguments["run"]), arguments.get("attribute")
        config = planned[run] if run in planned else read_config(run)
        if not config.get("module"):
            return None
        described, path, _ = nearest_node(config["module"], attribute.split(".") if attribute else [])
    target = resolve_class_path(described["class_path"], path)
    owner = target if isinstance(target, type) else getattr(target, "__self__", None)
    return build(spec, path).token_format if hasattr(owner, "token_format") else None
