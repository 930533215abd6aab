"""One stage: a job, or the fit and test of a module."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from callbacks.runtime.interrupt import InterruptHandler
from callbacks.runtime.last_checkpoint import LastCheckpoint
from callbacks.runtime.progress import StepProgress
from callbacks.runtime.signals import Interrupted
from callbacks.runtime.step_seeding import StepSeeding
from callbacks.runtime.training_cost import TrainingCost
from experiments.engine import ranks
from experiments.engine.artifacts import load_weights
from experiments.engine.configuration.builder import build
from experiments.engine.configuration.errors import ConfigError, join
from experiments.engine.configuration.schema import without_empty
from experiments.engine.environment import write_environment
from experiments.engine.parameters import report_parameters
from experiments.engine.runs import Run, read_json, write_config, write_json
from lightning_modules.sharding.strategy import AnyCheckpointIO

TRAINER_DEFAULTS = {"devices": 1, "num_sanity_val_steps": 0, "enable_model_summary": False}
QUIET_LOGGERS = ("lightning.pytorch", "lightning.fabric")
DEFAULT_NUM_THREADS = torch.get_num_threads()


@dataclass
class StageResult:
    """What a stage gave.

    Args:
        name: Name of the stage.
        run: Its run directory.
        metrics: Numbers by name.
        seconds: Duration of the work that was done last, in seconds.
        is_reused: Whether an earlier run was taken as it is.
        objects: `module`, `datamodule`, `trainer` or `job`; empty when reused or not kept.
    """

    name: str
    run: Run
    metrics: dict[str, Any]
    seconds: float
    is_reused: bool = False
    objects: dict[str, Any] = field(default_factory=dict)


def run_stage(name: str, config: dict[str, Any], run: Run, path: str = "") -> StageResult:
    """Do one stage, from where it stands, and mark it finished; of several processes, the first one writes records.

    Args:
        name: Name of the stage.
        config: Resolved configuration.
        run: Its run directory.
        path: YAML path of the stage for errors.

    Returns:
        Metrics and the objects that were built.

    Raises:
        ConfigError: A constructor refused its arguments.
    """
    start = time.monotonic()
    if ranks.is_first():
        write_config(run.config_file, {**without_empty(config), "fingerprint": run.fingerprint})
        write_environment(run)
    torch.set_num_threads(config["threads"] or DEFAULT_NUM_THREADS)
    with quiet(), ranks.launching(name):
        seed_everything(config["seed"], workers=True, verbose=False)
        if config["job"] is not None:
            job = build(config["job"], join(path, "job"))
            metrics, objects = job.run(run.directory) or {}, {"job": job}
        else:
            metrics, objects = _fit_and_test(name, config, run, path)
    seconds = round(time.monotonic() - start, 1)
    if not ranks.is_first():
        return StageResult(name, run, {}, seconds, objects=objects)
    write_json(run.finished_file, {"fingerprint": run.fingerprint, "metrics": metrics, "seconds": seconds})
    return StageResult(name, run, read_json(run.finished_file)["metrics"], seconds, objects=objects)


def _fit_and_test(name: str, config: dict[str, Any], run: Run, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    datamodule = build(config["datamodule"], join(path, "datamodule"))
    module = build(config["module"], join(path, "module"))
    interrupt = InterruptHandler(LastCheckpoint(run.checkpoint_file, **config["checkpoint"]))
    trainer = _build_trainer(name, config, run, path, module, interrupt)
    trainer.strategy.checkpoint_io = AnyCheckpointIO()
    metrics: dict[str, Any] = {}
    if config["fit"] and not run.fitted_file.is_file():
        checkpoint = run.checkpoint_file if run.checkpoint_file.exists() else None
        report_parameters(name, module, run)
        with _told_to_stop(interrupt, trainer):
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        metrics = dict(trainer.callback_metrics)
        if ranks.is_first():
            write_json(run.fitted_file, {"steps": trainer.global_step, "metrics": metrics})
    elif config["fit"]:
        metrics = read_json(run.fitted_file)["metrics"]
        load_weights(module, run)
    if config["test"]:
        trainer.test(module, datamodule=datamodule, verbose=False)
        metrics = {**metrics, **trainer.callback_metrics}
    return metrics, {"module": module, "datamodule": datamodule, "trainer": trainer}


@contextlib.contextmanager
def _told_to_stop(interrupt: InterruptHandler, trainer: Trainer) -> Iterator[None]:
    """Take a failure for an interruption where another process of the training has ended: work with it then fails."""
    with ranks.LossWatch(trainer.strategy.launcher) as watch:
        try:
            yield
        except Exception as error:
            if trainer.world_size == 1 or (interrupt.signum is None and not watch.has_lost):
                raise
            why = "a process of this training ended; what was saved last is kept"
            raise Interrupted(interrupt.signum or signal.SIGTERM, why) from error


def _build_trainer(
    name: str, config: dict[str, Any], run: Run, path: str, module: LightningModule, interrupt: InterruptHandler
) -> Trainer:
    callbacks = list(build(config["callbacks"], join(path, "callbacks")).values())
    if config["trainer"].get("enable_progress_bar", True):
        callbacks.append(StepProgress(label=name))
    directory = run.directory / "tensorboard"
    return make_trainer(
        config["trainer"],
        join(path, "trainer"),
        logger=[TensorBoardLogger(directory, name=one, version="") for one in getattr(module, "run_names", [name])],
        callbacks=[*callbacks, StepSeeding(config["seed"]), TrainingCost(), interrupt, interrupt.checkpoint],
        default_root_dir=run.directory,
    )


def make_trainer(config: dict[str, Any], path: str, **own: Any) -> Trainer:
    """Make a Trainer; nothing is launched yet.

    Args:
        config: The `trainer` of a stage.
        path: Its YAML path for errors.
        own: Arguments that are not the user's to choose.

    Raises:
        ConfigError: Lightning refuses an argument, or the machine lacks what it asks for.
    """
    arguments = {**TRAINER_DEFAULTS, **build(config, path), **own}
    try:
        return Trainer(**arguments)
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        raise ConfigError(path, str(error)) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within this context, keep Lightning from advising and from announcing devices."""
    for logger in QUIET_LOGGERS:
        logging.getLogger(logger).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", "You have overridden `transfer_batch_to_device`")  # data modules do not
        warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")
        yield
