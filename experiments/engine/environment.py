"""What made a run: the code, the packages and the machine. A fingerprint knows none of them."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.engine.configuration.builder import ROOMS
from experiments.engine.runs import Run, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
GIT_TIMEOUT_S = 10.0


def write_environment(run: Run) -> None:
    """Write down what makes a run from now on."""
    write_json(run.environment_file, describe_environment())


def describe_environment() -> dict[str, Any]:
    """Describe code, packages and machine."""
    import torch

    commit, is_dirty = read_commit(ROOT)
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "commit": commit,
        "is_dirty": is_dirty,
        "sources": digest_sources(ROOT),
        "command": shlex.join(sys.argv),
        "packages": read_versions(ROOT / "requirements.txt"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(num_gpus)],
    }


def describe_other_code(run: Run) -> str | None:
    """Say which code made a run, if it is not the present one; None if it is, or if the run does not say."""
    if not run.environment_file.is_file():
        return None
    then, sources = read_json(run.environment_file), digest_sources(ROOT)
    if then.get("sources") == sources:
        return None
    commit, is_dirty = read_commit(ROOT)
    if commit and then.get("commit") and commit != then["commit"]:
        return f"commit {_name(then['commit'], then.get('is_dirty'))}, now {_name(commit, is_dirty)}"
    return f"sources {str(then.get('sources'))[:8]}, now {sources[:8]}"


def read_commit(root: Path) -> tuple[str | None, bool | None]:
    """Return the git commit of a checkout and whether anything differs from it; None for both outside a checkout."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != root:
        return None, None
    status = _git(root, "status", "--porcelain")
    return _git(root, "rev-parse", "HEAD"), None if status is None else bool(status)


@functools.cache
def digest_sources(root: Path) -> str:
    """Return the hexadecimal digest of names and contents of our Python files, without the tests."""
    digest = hashlib.sha256()
    for file in sorted(file for room in ROOMS if room != "tests" for file in (root / room).rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(content)} ".encode() + content)
    return digest.hexdigest()


def read_versions(requirements: Path) -> dict[str, str | None]:
    """Return the installed versions of the packages that a requirements file pins; None for one that is missing."""
    versions: dict[str, str | None] = {}
    for line in requirements.read_text(encoding="utf-8").splitlines() if requirements.is_file() else ():
        name, pin, _ = line.partition("==")
        if pin and not name.startswith("#"):
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = None
    return versions


def _name(commit: str, is_dirty: bool | None) -> str:
    return f"{commit[:8]} with changes" if is_dirty else commit[:8]


def _git(root: Path, *words: str) -> str | None:
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
