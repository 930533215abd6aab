"""Composition of experiments: YAML files, their parents and `key=value` overrides become plain dictionaries."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.engine.configuration.choices import CHOICES, choose
from experiments.engine.configuration.errors import ConfigError, did_you_mean, join
from experiments.engine.configuration.overrides import aliases_of, parse_override
from experiments.engine.configuration.schema import (
    EXPERIMENT_KEYS,
    INHERITED_BY_STAGES,
    PIPELINE_KEYS,
    PIPELINE_ONLY_KEYS,
    CheckpointPolicy,
    Experiment,
    check_keys,
)

EXPERIMENTS_DIR = Path(__file__).resolve().parents[2]
STAGES_DIR, PAPER_DIR = "stages", "paper"
NOT_OF_STAGES = ("base", "aliases", "seeds")
HEAD_KEYS = ("name", "description", "runs_dir", "seed")


@dataclass
class Stage:
    """One composed experiment of a pipeline, or the only one.

    Args:
        name: Name of the stage; its run directory and its default TensorBoard run bear it.
        path: YAML path of the stage in the user's file, `stages.<name>` or empty.
        config: Every key of `Experiment` with interpolations still in place.
    """

    name: str
    path: str
    config: dict[str, Any]


@dataclass
class Pipeline:
    """An experiment file after composition: one stage or several, in order."""

    name: str
    description: str
    runs_dir: Path
    stages: list[Stage]
    is_single: bool


def merge(parent: Any, child: Any) -> Any:
    """Lay `child` over `parent`: mappings merge key by key, anything else is replaced.

    A child that names another `class_path` drops its parent's `init_args`, which belong to the other class.
    """
    if not (isinstance(parent, dict) and isinstance(child, dict)):
        return child
    if "class_path" in child and child["class_path"] != parent.get("class_path"):
        parent = {key: value for key, value in parent.items() if key != "init_args"}
    merged = dict(parent)
    for key, value in child.items():
        merged[key] = merge(parent[key], value) if key in parent else value
    return merged


def find_file(name: str | Path, near: Path) -> Path:
    """Find an experiment file, as given (from the directory `near`) or among the shipped experiments and stages.

    The suffix `.yaml` may be left out.

    Raises:
        ConfigError: No such file.
    """
    for directory in (near, EXPERIMENTS_DIR, EXPERIMENTS_DIR / STAGES_DIR):
        for candidate in (directory / name, directory / f"{name}.yaml"):
            if candidate.is_file():
                return candidate.resolve()
    known = [shipped_name(file) for file in (*shipped_files(), *shipped_stages(), *shipped_at_paper_scale())]
    raise ConfigError("", f"there is no experiment {name}; {did_you_mean(str(name).removesuffix('.yaml'), known)}")


def shipped_files() -> list[Path]:
    """Return the files of the shipped experiments."""
    return sorted(EXPERIMENTS_DIR.glob("*.yaml"))


def shipped_stages() -> list[Path]:
    """Return the files of the shipped single stages."""
    return sorted((EXPERIMENTS_DIR / STAGES_DIR).glob("*.yaml"))


def shipped_at_paper_scale() -> list[Path]:
    """Return the files of the shipped experiments with models and corpora of the paper's size."""
    return sorted((EXPERIMENTS_DIR / PAPER_DIR).glob("*.yaml"))


def shipped_name(file: Path) -> str:
    """Return what a shipped experiment or stage is called on the command line."""
    return f"{PAPER_DIR}/{file.stem}" if file.parent.name == PAPER_DIR else file.stem


def describe_shipped() -> str:
    """Return one line for each shipped experiment, then, under headings, one for each single stage and large one."""
    parts = {
        "": shipped_files(),
        "Single stages; give the inputs that they ask for, inputs.NAME=PATH:": shipped_stages(),
        "At the paper's scale; give the inputs, models and corpora, likewise:": shipped_at_paper_scale(),
    }
    width = max((len(shipped_name(file)) for files in parts.values() for file in files), default=0)
    found = [
        "\n".join([*filter(None, [head]), *(_describe(one, width) for one in files)])
        for head, files in parts.items()
        if files
    ]
    return "\n\n".join(found)


def _describe(file: Path, width: int) -> str:
    return f"{shipped_name(file):<{width}}  {read_file(file).get('description', '')}".rstrip()


def read_file(file: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read an experiment file and lay it over its parents.

    Args:
        file: The YAML file.
        children: Files that led here, to detect a cycle.

    Returns:
        The merged keys, without the file's own `base`; the `base` of each stage holds absolute file names.

    Raises:
        ConfigError: Not YAML, not a mapping, a missing parent, or a cycle of parents.
    """
    if file in children:
        raise ConfigError("base", f"{file.name} is its own parent: {' -> '.join(f.name for f in (*children, file))}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except OSError as error:
        raise ConfigError("", f"{file} cannot be read: {error.strerror}; check its permissions") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        is_unquoted = re.search(r"\?\?\?\s*[,}]", file.read_text("utf-8", "replace"))
        hint = '; within braces write "???" in quotes' if is_unquoted else ""
        raise ConfigError("", f"{file} is not valid YAML: {error}{hint}") from error
    if not isinstance(content, dict):
        raise ConfigError("", f"{file} must hold keys of an experiment; {did_you_mean('', EXPERIMENT_KEYS)}")
    stages = content.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and stage.get("base"):
            where = f"stages.{name}.base (in {file.name})"
            stage["base"] = [str(_parent_file(parent, file, where)) for parent in _as_list(stage["base"], where)]
    merged: dict[str, Any] = {}
    for parent in _as_list(content.pop("base", None), f"base (in {file.name})"):
        parent_file = _parent_file(parent, file, f"base (in {file.name})")
        merged = merge(merged, read_file(parent_file, (*children, file)))
    return cast(dict[str, Any], merge(merged, content))


def compose(file: Path, overrides: list[str]) -> Pipeline:
    """Compose an experiment file with its parents and overrides, and check its keys.

    Args:
        file: The experiment file.
        overrides: Texts like `stages.codec.trainer.max_steps=10`; they win over the files. One like `size=paper` takes
            an alternative of the file's `choices`.

    Returns:
        The stages, each with all keys of `Experiment`, interpolations unresolved.

    Raises:
        ConfigError: Any mistake in keys or plain types of the schema.
    """
    content = read_file(file)
    chosen, overrides = choose(content, overrides, EXPERIMENT_KEYS)
    content.pop(CHOICES, None)
    for alternative in chosen:
        content = merge(content, alternative)
    aliases = aliases_of(content)
    stage_names = content["stages"] if isinstance(content.get("stages"), dict) else {}
    for text in overrides:
        override = parse_override(text, aliases)
        if "base" in override:
            raise ConfigError("base", "the parents cannot be overridden; write a file with another base")
        for name in override["stages"] if isinstance(override.get("stages"), dict) else ():
            if name not in stage_names:
                raise ConfigError(f"stages.{name}", f"there is no such stage; {did_you_mean(name, stage_names)}")
        content = merge(content, override)
    check_keys(content, "")
    head = interpolate({key: value for key, value in content.items() if key in HEAD_KEYS}, "")
    name = head.get("name") or file.stem
    description, runs_dir = head.get("description") or "", Path(head.get("runs_dir") or "runs").expanduser()
    if content.get("stages") is None:
        _check_groups(content, [])
        return Pipeline(name, description, runs_dir, [Stage(name, "", _complete(content))], is_single=True)
    for key in content:
        if key not in PIPELINE_KEYS:
            raise ConfigError(key, f"a pipeline has stages instead; move it to stages.<name>.{key}")
    stages = [
        _compose_stage(stage_name, stage, content)
        for stage_name, stage in content["stages"].items()
        if stage is not None
    ]
    if not stages:
        raise ConfigError("stages", "the pipeline has no stage; name at least one")
    _check_groups(content, stages)
    return Pipeline(name, description, runs_dir, stages, is_single=False)


def _check_groups(content: dict[str, Any], stages: list[Stage]) -> None:
    """Refuse seeds of groups that no stage is in."""
    groups = {stage.config["seed_group"] for stage in stages} - {None}
    for group in content.get("seeds") or {}:
        if group not in groups:
            raise ConfigError(f"seeds.{group}", f"no stage has this seed_group; {did_you_mean(group, groups)}")


def _compose_stage(name: str, own: Any, pipeline: dict[str, Any]) -> Stage:
    path = f"stages.{name}"
    if not isinstance(own, dict):
        raise ConfigError(path, f"expected the keys of an experiment, got {own!r}")
    merged: dict[str, Any] = {}
    for parent in _as_list(own.get("base"), f"{path}.base"):
        merged = merge(merged, read_file(find_file(parent, Path.cwd())))
    if merged.get("stages") is not None:
        raise ConfigError(f"{path}.base", "a stage cannot be a pipeline itself")
    inherited = {key: pipeline[key] for key in INHERITED_BY_STAGES if key in pipeline}
    if (own_seed := (pipeline.get("seeds") or {}).get(own.get("seed_group", merged.get("seed_group")))) is not None:
        inherited["seed"] = own_seed
    declared = {**(merged.get("inputs") or {}), **(own.get("inputs") or {})}
    inherited["inputs"] = {key: value for key, value in (pipeline.get("inputs") or {}).items() if key in declared}
    for key in PIPELINE_ONLY_KEYS:
        if key in own:
            raise ConfigError(join(path, key), f"a stage has no {key} of its own; set it for the pipeline")
        merged.pop(key, None)
    merged = merge(merge(merged, inherited), {key: value for key, value in own.items() if key != "base"})
    check_keys(merged, path)
    return Stage(name, path, _complete(merged))


def interpolate(config: dict[str, Any], path: str) -> dict[str, Any]:
    """Replace every `${...}` of a configuration.

    Raises:
        ConfigError: An interpolation names nothing, or something that was left open.
    """
    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(config), resolve=True))
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        where = join(path, error.full_key) if error.full_key else path
        raise ConfigError(where, f"{problem}; name a key of this experiment") from error


def _complete(content: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults and drop what was removed by null."""
    config: dict[str, Any] = {
        f.name: content.get(f.name) for f in dataclasses.fields(Experiment) if f.name not in NOT_OF_STAGES
    }
    for key, value in dataclasses.asdict(Experiment()).items():
        if key in config and config[key] is None:
            config[key] = value
    config["callbacks"] = {key: value for key, value in config["callbacks"].items() if value is not None}
    config["checkpoint"] = {**dataclasses.asdict(CheckpointPolicy()), **config["checkpoint"]}
    return config


def _as_list(value: Any, path: str) -> list[str]:
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise ConfigError(path, f"expected a list of files, got {value!r}")
    return values


def _parent_file(name: str, file: Path, path: str) -> Path:
    try:
        return find_file(name, file.parent)
    except ConfigError as error:
        raise ConfigError(path, error.problem) from error
