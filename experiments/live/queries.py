"""The test queries of a run, to be asked on the live page, and the kinds of query that its corpus has."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.spoken_dialogues import SpokenDialogueDataModule
from experiments.engine.configuration.builder import build
from lightning_modules.errors import UserError

PLAN_FILE = "plan.json"  # what a corpus of embedded templates leaves of them


@dataclass(frozen=True)
class ServedQuery:
    """A query of the test set.

    Attributes:
        id: Its name.
        text: What is said, or its name if that is not known.
        waveform: ``(S,) float32`` at 16 kHz.
    """

    id: str
    text: str
    waveform: np.ndarray


@dataclass(frozen=True)
class QueryKind:
    """A family of queries.

    Attributes:
        name: Its name.
        examples: A few of them, out of the test set.
    """

    name: str
    examples: list[str]


def read_test_queries(config: dict[str, Any] | None, limit: int) -> list[ServedQuery]:
    """Read the test queries that a run's data module has.

    Args:
        config: The run's configuration; None if there is none, as for an export.
        limit: How many are read, from the first on.

    Returns:
        The queries; none if the run reads another kind of corpus, or the corpus is not there any more.
    """
    node = copy.deepcopy((config or {}).get("datamodule"))
    if not node or node["class_path"] != f"{SpokenDialogueDataModule.__module__}.{SpokenDialogueDataModule.__name__}":
        return []
    for fields in (["query", "transcript"], ["query"]):
        node["init_args"] |= {"fields": fields, "test_fields": fields, "max_test_examples": limit}
        node["init_args"].pop("reply_crop_s", None)
        try:
            examples = build(node, "datamodule").examples("test")
        except FileNotFoundError:
            return []
        except UserError:
            continue  # the corpus has no transcripts, or no queries
        found = [examples[position] for position in range(min(limit, len(examples)))]
        return [ServedQuery(one.id, one.transcript or one.id, one.query.numpy()) for one in found]
    return []


def read_kinds(config: dict[str, Any] | None, num_examples: int = 3) -> list[QueryKind]:
    """Read which kinds of query a corpus of embedded templates has.

    Args:
        config: The run's configuration; None if there is none.
        num_examples: Examples of each.

    Returns:
        The kinds in the order of their names; none if the corpus does not tell.
    """
    arguments = ((config or {}).get("datamodule") or {}).get("init_args") or {}
    if not isinstance(arguments.get("root"), str):
        return []
    file = Path(arguments["root"]) / arguments.get("set_name", "spoken_examples") / PLAN_FILE
    if not file.is_file():
        return []
    examples: dict[str, list[str]] = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        dialogue = entry["dialogue"]
        known = examples.setdefault(dialogue["intent"], [])
        if entry["id"].startswith("test") and len(known) < num_examples:
            known.append(dialogue["query"])
    return [QueryKind(name, examples[name]) for name in sorted(examples)]
