"""Run directories: named by what is in them, so that a changed experiment never overwrites an older one."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from datamodules.formats.atomic_files import write_text
from experiments.engine.configuration.errors import ConfigError
from lightning_modules.errors import UserError

MAX_LISTED_FILES = 10_000
LOCK_PATIENCE_S = 1.0
LATEST, FINISHED = "latest.txt", "finished.json"


@dataclass(frozen=True)
class Run:
    """The directory of one stage.

    Args:
        directory: `<runs_dir>/<pipeline>/<stage>-<first 8 digits of the fingerprint>`.
        fingerprint: Hexadecimal digest of the resolved configuration and the inputs.
    """

    directory: Path
    fingerprint: str

    @property
    def config_file(self) -> Path:
        """The resolved configuration, written before anything is done."""
        return self.directory / "config.yaml"

    @property
    def environment_file(self) -> Path:
        """The code, packages and machine of the process that worked on the run last."""
        return self.directory / "environment.json"

    @property
    def checkpoint_file(self) -> Path:
        """The newest checkpoint of a fit."""
        return self.directory / "checkpoints" / "last.ckpt"

    @property
    def fitted_file(self) -> Path:
        """The mark that the fit, though perhaps not the test, is done."""
        return self.directory / "fitted.json"

    @property
    def finished_file(self) -> Path:
        """The mark that everything is done: fingerprint, metrics, seconds."""
        return self.directory / FINISHED

    @property
    def is_begun(self) -> bool:
        """Whether there is something to resume."""
        return self.config_file.is_file() and not self.is_finished

    @property
    def is_finished(self) -> bool:
        """Whether the stage was done to its end with this very fingerprint."""
        return self.finished_file.is_file() and read_json(self.finished_file).get("fingerprint") == self.fingerprint


def latest_run(directory: Path, stage: str) -> Path | None:
    """Find the finished run of a stage that was used last, or else, finished last.

    Args:
        directory: `<runs_dir>/<pipeline>`.
        stage: Name of the stage.

    Returns:
        Its directory, None if there is none.
    """
    name = read_latest(directory).get(stage)
    if name is not None and (directory / name / FINISHED).is_file():
        return directory / name
    others = directory.glob(f"{stage}-{'[0-9a-f]' * 8}/{FINISHED}")
    newest = max(others, key=lambda file: file.stat().st_mtime, default=None)
    return newest.parent if newest is not None else None


def read_latest(directory: Path) -> dict[str, str]:
    """Return the name of the run of each stage that was used last."""
    file = directory / LATEST
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {stage: name for stage, separator, name in (line.partition(": ") for line in lines) if separator}


def write_latest(directory: Path, runs: dict[str, str]) -> None:
    """Say which run belongs to each stage now; other stages keep theirs.

    A link would show every curve twice in TensorBoard.
    """
    lines = [f"{stage}: {name}" for stage, name in {**read_latest(directory), **runs}.items()]
    write_text(directory / LATEST, "\n".join(lines) + "\n")


def fingerprint_of(config: dict[str, Any]) -> str:
    """Return the hexadecimal digest of a configuration; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint_of_path(path: Path) -> str:
    """Return a digest that changes when a file or directory changes.

    A run directory counts by its own fingerprint. Any other path counts by the names, sizes and modification times of
    itself and of what lies at most two levels below, without reading contents.

    Args:
        path: An existing path.
    """
    finished = path / FINISHED
    if finished.is_file():
        return str(read_json(finished).get("fingerprint"))
    entries = [path, *sorted(path.glob("*")), *sorted(path.glob("*/*"))][:MAX_LISTED_FILES]
    stats = [(str(entry), entry.stat()) for entry in entries]
    facts = [str(path.resolve()), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def write_json(file: Path, content: Any) -> None:
    """Write a record as JSON, atomically; a value that JSON does not know becomes a number if it can, else text."""
    _write(file, json.dumps(content, indent=2, default=_plain) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON mapping.

    Raises:
        UserError: The file is not JSON.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); delete its directory and run again") from error


def write_config(file: Path, config: dict[str, Any]) -> None:
    """Write a resolved configuration as YAML, atomically."""
    _write(file, OmegaConf.to_yaml(OmegaConf.create(config)))


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a run directory for this process alone; the hold ends with the process, however it ends.

    Raises:
        ConfigError: Another process works in the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w", encoding="utf-8") as lock:
        give_up_s = time.monotonic() + LOCK_PATIENCE_S  # one that looks whether it is held holds it for an instant
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > give_up_s:
                    problem = f"another process is working in {directory}; wait for it or stop it"
                    raise ConfigError("", problem) from error
                time.sleep(LOCK_PATIENCE_S / 20)
        yield


def is_held(directory: Path) -> bool:
    """Tell whether a process holds a run directory."""
    try:
        with open(directory / ".lock", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _write(file: Path, text: str) -> None:
    """Write a record atomically; make its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def _plain(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)
