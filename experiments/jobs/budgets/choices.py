"""The record of what was chosen for each talker."""

from pathlib import Path
from typing import Any

from experiments.engine.runs import read_json

CHOICE = "choice.json"


def read_choice(run: Path) -> dict[str, Any]:
    """Read what was chosen.

    Raises:
        FileNotFoundError: If the run is none of a :class:`RateChoice`, or not finished.
    """
    file = run / CHOICE
    if not file.is_file():
        raise FileNotFoundError(f"{run} has no {CHOICE}; give the run of a finished stage with the job RateChoice")
    return read_json(file)
