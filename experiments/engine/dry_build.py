"""Checks of the stages of a plan that need their classes."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from experiments.engine.checks import check_arguments, check_spec, check_value
from experiments.engine.errors import ConfigError, join

OWN_TRAINER_KEYS = ("logger", "callbacks", "default_root_dir", "enable_checkpointing")


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
    return check_spec(node, path)
