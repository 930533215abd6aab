"""The files of a finished comparison, as the page reads them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.errors import UserError

Json = dict[str, Any]
FILES = ("results.json", "transcripts.json", "samples.json", "system.json")


@dataclass(frozen=True)
class ComparedRun:
    """One test of a system.

    Attributes:
        folder: Its run directory.
        rows: Of the comparison, one per decoding and reference, by name.
        transcripts: What was said and heard, one per decoding and dialogue.
        samples: Dialogues with audio.
        system: What took part.
        config: Its resolved configuration; empty if it was not made by an experiment.
        environment: Code and machine; empty likewise.
    """

    folder: Path
    rows: dict[str, Json]
    transcripts: list[Json]
    samples: list[Json]
    system: Json
    config: Json
    environment: Json

    @property
    def seed(self) -> int | None:
        """Seed of the test, and of the experiment that it ends."""
        return self.config.get("seed")


def read_run(folder: Path) -> ComparedRun:
    """Read a run directory.

    Args:
        folder: Of a stage that ended with a comparison.

    Returns:
        What is in it.

    Raises:
        FileNotFoundError: If it holds no comparison.
        UserError: If a file of it is damaged, or it was made before there were pages.
    """
    if not (folder / FILES[0]).is_file():
        raise FileNotFoundError(f"{folder} holds no comparison; give the directory of a finished stage that compares")
    for name in FILES[1:]:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: an earlier version made it; run its stage again with --force")
    rows, transcripts, samples, system = (_read_json(folder / name) for name in FILES)
    by_name = {row["name"]: row for row in rows}
    return ComparedRun(folder, by_name, transcripts, samples, system, *read_records(folder))


def read_records(folder: Path) -> tuple[Json, Json]:
    """Read the configuration and the environment of a run; what is not there is empty."""
    config, environment = folder / "config.yaml", folder / "environment.json"
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
    except yaml.YAMLError as error:
        raise UserError(f"{config} is damaged ({error}); run its stage again with --force") from error
    return settings or {}, read_optional(environment)


def read_optional(file: Path) -> Json:
    """Read a JSON mapping; empty if there is no such file."""
    content: Json = _read_json(file) if file.is_file() else {}
    return content


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); run its stage again with --force") from error


def locate(path: str, beside: Path) -> Path:
    """Find a run that a configuration names: where it was, or beside the one that names it if all were moved."""
    place = Path(path)
    moved = beside.parent / place.name
    return moved if not place.exists() and moved.exists() else place
