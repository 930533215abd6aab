"""How a talker was trained, stage by stage, as the records of the runs tell it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callbacks.comparison.page.run_files import Json, locate, read_optional, read_records

MAX_STAGES = 20


@dataclass(frozen=True)
class TrainingStage:
    """One training that the weights of a talker went through; what is not recorded is None.

    Attributes:
        run: Name of the run directory.
        num_steps: Optimizer steps.
        batch_size: Dialogues per step, over all devices.
        learning_rate: Of this talker.
        corpus: Name of the directory of the dialogues.
        num_dialogues: Dialogues to train on.
        precision: Of the trainer.
        seconds: Duration, shared with all that trained in this run.
        commit: Of the code.
        machine: Where it ran.
    """

    run: str
    num_steps: int | None
    batch_size: int | None
    learning_rate: float | None
    corpus: str | None
    num_dialogues: int | None
    precision: str | None
    seconds: float | None
    commit: str | None
    machine: str | None


def trace(folder: Path, talker: str) -> list[TrainingStage]:
    """Follow a talker back through the runs that its weights come from.

    Args:
        folder: A run directory whose module has the talker.
        talker: Its name there.

    Returns:
        Its trainings, the first one first; none where the records end.
    """
    stages: list[TrainingStage] = []
    for _ in range(MAX_STAGES):  # damaged records may name each other in a circle
        settings, environment = read_records(folder)
        arguments = (settings.get("module") or {}).get("init_args") or {}
        if settings.get("fit", True) and settings.get("trainer"):
            stages.insert(0, _describe(folder, talker, settings, environment))
        spec = (arguments.get("talkers") or {}).get(talker)
        source = _source(spec) or _source(arguments.get("initial_talker"))
        if source is None:
            break
        folder, talker = locate(source[0], folder), source[1]
    return stages


def _source(spec: Any) -> tuple[str, str] | None:
    """Give the run, and the name there, of a talker that is loaded from another run."""
    arguments = (spec.get("init_args") or {}) if isinstance(spec, dict) else {}
    run, attribute = arguments.get("run"), arguments.get("attribute") or ""
    if not run or not attribute.startswith("talkers."):
        return None
    return str(run), attribute.removeprefix("talkers.")


def _describe(folder: Path, talker: str, config: Json, environment: Json) -> TrainingStage:
    arguments = (config.get("module") or {}).get("init_args") or {}
    data = (config.get("datamodule") or {}).get("init_args") or {}
    trainer = config.get("trainer") or {}
    rates = arguments.get("talker_learning_rates") or {}
    steps = read_optional(folder / "fitted.json").get("steps", trainer.get("max_steps"))
    root = data.get("root")
    corpus = None if root is None else locate(str(root), folder)
    made = {} if corpus is None else read_optional(corpus / "finished.json").get("metrics") or {}
    devices = trainer.get("devices", 1)
    batch_size = data.get("batch_size")
    return TrainingStage(
        run=folder.name,
        num_steps=steps,
        batch_size=batch_size * devices if isinstance(batch_size, int) and isinstance(devices, int) else batch_size,
        learning_rate=rates.get(talker, arguments.get("learning_rate")),
        corpus=None if corpus is None else corpus.name,
        num_dialogues=made.get("num_train"),
        precision=None if trainer.get("precision") is None else str(trainer["precision"]),
        seconds=read_optional(folder / "finished.json").get("seconds"),
        commit=name_commit(environment),
        machine=name_machine(environment),
    )


def name_commit(environment: Json) -> str | None:
    """Name the code of a run, and say if it was changed since its commit."""
    commit = environment.get("commit")
    if not commit:
        return None
    return f"{commit[:10]}{' with changes' if environment.get('is_dirty') else ''}"


def name_machine(environment: Json) -> str | None:
    """Name the machine of a run."""
    if not environment:
        return None
    gpus = environment.get("gpus") or []
    parts = [f"{environment.get('num_cpus')} CPU cores", *sorted({f"{gpus.count(gpu)} x {gpu}" for gpu in gpus})]
    return ", ".join(parts)
