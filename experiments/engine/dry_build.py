"""Checks of the stages of a plan before any of them runs: of every argument, and by building without weights.

Constructors refuse what does not fit together, so all of them are run up front: on the meta device, where tensors have
shapes but no content, and with parts of runs that are still to come built from their planned configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng

from experiments.engine.artifacts import Config, without_weights
from experiments.engine.codebooks import planned_formats
from experiments.engine.configuration.builder import build
from experiments.engine.configuration.checks import check_arguments, check_value, resolve_class_path
from experiments.engine.configuration.errors import ConfigError, is_users_mistake, join, text_of
from experiments.engine.plan import PlannedStage
from experiments.engine.stage import make_trainer, quiet

OWN_TRAINER_KEYS = ("logger", "callbacks", "default_root_dir", "enable_checkpointing")
# what a split is for, as a key of the stage
SPLITS = {"train": "fit", "validation": "fit", "test": "test"}
PROBE = {key: False for key in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
WRONG_ARGUMENTS = re.compile(r"unexpected keyword argument|required (positional|keyword-only) argument|positional arg")


def check_stages(stages: Sequence[PlannedStage], redo: bool = False) -> None:
    """Check every stage, and build without weights each one that is to run.

    Args:
        stages: Stages in order; `world_size`, `max_steps` and `unchecked` of those that are to run are set.
        redo: Whether finished stages are to run, too.

    Raises:
        ConfigError: The first mistake found.
    """
    for planned in stages:
        check_stage(planned.config, planned.stage.path)
    to_run = [planned for planned in stages if redo or not planned.run.is_finished]
    not_there = [str(planned.run.directory) for planned in to_run]
    configs = {planned.run.directory: planned.config for planned in stages}
    with _undisturbed(), without_weights(configs):
        for planned in to_run:
            _DryBuild(planned, not_there, configs).run()


def check_stage(config: dict[str, Any], path: str) -> None:
    """Check the parts of a resolved stage: classes, arguments, types, and that the parts belong together.

    Raises:
        ConfigError: The first mistake found.
    """
    if (config["job"] is None) == (config["module"] is None):
        raise ConfigError(path, "give either a job or a module (with its datamodule)")
    if config["job"] is not None:
        _check_job(config, path)
    else:
        _check_training(config, path)


def _check_job(config: dict[str, Any], path: str) -> None:
    for key in ("datamodule", "trainer", "callbacks"):
        if config[key]:
            raise ConfigError(join(path, key), f"a job has no {key}; remove it, or give a module for the job")
    job = _check_part(config, "job", path, object)
    if isinstance(job, type) and not callable(getattr(job, "run", None)):
        raise ConfigError(join(path, "job.class_path"), f"{job.__qualname__} has no method run(output_dir)")


def _check_training(config: dict[str, Any], path: str) -> None:
    _check_part(config, "module", path, LightningModule)
    if config["datamodule"] is None:
        raise ConfigError(join(path, "datamodule"), "a module needs a datamodule; give class_path and init_args")
    _check_part(config, "datamodule", path, LightningDataModule)
    for name in config["callbacks"]:
        _check_part(config["callbacks"], name, join(path, "callbacks"), Callback)
    for key in OWN_TRAINER_KEYS:
        if key in config["trainer"]:
            raise ConfigError(join(join(path, "trainer"), key), "this is set by the experiment runner; remove it")
    check_arguments(Trainer, config["trainer"], join(path, "trainer"))
    if not config["fit"] and not config["test"]:
        raise ConfigError(join(path, "fit"), "neither fit nor test is asked for; set one of them to true")
    limits = ("max_steps", "max_epochs", "max_time")
    if config["fit"] and all(config["trainer"].get(key) in (None, -1) for key in limits):
        raise ConfigError(join(path, "trainer.max_steps"), "say how long to train, in steps")


def _check_part(config: dict[str, Any], key: str, path: str, kind: type) -> Any:
    node, path = config[key], join(path, key)
    if not isinstance(node, dict) or "class_path" not in node:
        raise ConfigError(path, f"expected class_path and init_args, got {node!r}")
    check_value(node, kind, path)
    return resolve_class_path(node["class_path"], path)


class _DryBuild:
    """Builds one stage without weights; what depends on files that are not there yet is left for its turn."""

    def __init__(self, planned: PlannedStage, not_there: Sequence[str], configs: Mapping[Path, Config]) -> None:
        """Create it.

        Args:
            planned: The stage.
            not_there: Run directories of the stages that are still to run.
            configs: Configurations of all stages, by run directory.
        """
        self._planned, self._not_there, self._configs = planned, not_there, configs

    def run(self) -> None:
        """Build all parts and let them check each other."""
        config, path = self._planned.config, self._planned.stage.path
        if config["job"] is not None:
            self._build(config["job"], join(path, "job"))
            return
        trainer = make_trainer(config["trainer"], join(path, "trainer"), **PROBE)
        self._planned.world_size = trainer.world_size
        self._planned.max_steps = trainer.max_steps if trainer.max_steps >= 0 else math.inf
        datamodule = self._build(config["datamodule"], join(path, "datamodule"))
        module = self._build(config["module"], join(path, "module"))
        callbacks_path = join(path, "callbacks")
        callbacks = {name: self._build(node, join(callbacks_path, name)) for name, node in config["callbacks"].items()}
        if module is None:
            return
        if hasattr(module, "check_strategy"):
            self._try(partial(module.check_strategy, trainer.strategy), join(path, "trainer.strategy"))
        for name, callback in callbacks.items():
            if hasattr(callback, "check"):
                self._try(partial(callback.check, module, self._planned.max_steps), join(callbacks_path, name))
        if hasattr(module, "check_data") and hasattr(datamodule, "fields"):
            fields = datamodule.fields
            by_split = fields if isinstance(fields, Mapping) else dict.fromkeys(SPLITS, fields)
            used = {split: by_split[split] for split, key in SPLITS.items() if config[key] and split in by_split}
            self._try(partial(module.check_data, used), join(path, "datamodule"))
        if hasattr(module, "check_tokens") and hasattr(datamodule, "token_formats"):
            # tokens that are still to be written, too: a mistake is told before the talkers have trained on them
            self._try(lambda: module.check_tokens(datamodule.num_codes, self._token_formats(datamodule)), path)

    def _token_formats(self, datamodule: Any) -> dict[str, Any]:
        return {**planned_formats(self._planned.config, self._configs), **datamodule.token_formats()}

    def _build(self, node: Any, path: str) -> Any:
        def on_meta() -> Any:
            with torch.device("meta"):
                return build(node, path)

        return self._try(on_meta, path)

    def _try(self, action: Callable[[], Any], path: str) -> Any:
        """Return what an action returns, None if its failure says nothing about the experiment yet.

        Objects of libraries may not live on the meta device, and fail in any way.
        """
        try:
            return action()
        except Exception as error:
            if self._is_mistake(error):
                raise error if isinstance(error, ConfigError) else ConfigError(path, text_of(error)) from error
            self._planned.unchecked.append(path)
            return None

    def _is_mistake(self, error: Exception) -> bool:
        if any(directory in f"{error} {text_of(error)}" for directory in self._not_there):
            return False
        if isinstance(error, TypeError):
            return WRONG_ARGUMENTS.search(str(error)) is not None
        cause = error.__cause__ if isinstance(error, ConfigError) and error.__cause__ is not None else error
        return is_users_mistake(cause) or isinstance(cause, MisconfigurationException)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the random state and the choice of algorithms from what is built in this context."""
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    with quiet(), isolate_rng(include_cuda=False):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(is_deterministic)
