"""The test queries of a run, and the kinds of query that a corpus of embedded templates has."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.live.queries import read_kinds, read_test_queries
from tests.datamodules.tiny_corpus import write_split

DATAMODULE = "datamodules.spoken_dialogues.SpokenDialogueDataModule"


def config_of(root: Path, **arguments: Any) -> dict[str, Any]:
    return {"datamodule": {"class_path": DATAMODULE, "init_args": {"root": str(root), **arguments}}}


def test_queries_are_the_first_ones_of_the_test_set(tmp_path: Path) -> None:
    items = write_split(tmp_path, "test", 5)
    config = config_of(tmp_path, fields=["query", "units"], reply_crop_s=None)
    queries = read_test_queries(config, 3)
    assert [one.id for one in queries] == [item["id"] for item in items[:3]]
    assert [one.text for one in queries] == [item.get("transcript", item["id"]) for item in items[:3]]
    assert all(one.waveform.dtype == np.float32 and len(one.waveform) > 0 for one in queries)
    assert config == config_of(tmp_path, fields=["query", "units"], reply_crop_s=None), "left as it was"


def test_without_a_corpus_there_are_none(tmp_path: Path) -> None:
    assert read_test_queries(None, 3) == [] and read_kinds(None) == []
    assert read_test_queries(config_of(tmp_path / "gone"), 3) == [] and read_kinds(config_of(tmp_path / "gone")) == []
    other = {"datamodule": {"class_path": "datamodules.sharded_dialogues.ShardedDialogueDataModule", "init_args": {}}}
    assert read_test_queries(other, 3) == []


def test_kinds_have_examples_out_of_the_test_set(tmp_path: Path) -> None:
    entries = [
        {"id": f"{split}_{i}", "dialogue": {"intent": intent, "query": f"{intent} {split} {i}"}}
        for split in ("train", "test")
        for intent in ("song", "alarm")
        for i in range(4)
    ]
    (tmp_path / "spoken_examples").mkdir()
    (tmp_path / "spoken_examples" / "plan.json").write_text(json.dumps(entries), encoding="utf-8")
    kinds = read_kinds(config_of(tmp_path))
    assert [one.name for one in kinds] == ["alarm", "song"]
    assert kinds[0].examples == ["alarm test 0", "alarm test 1", "alarm test 2"]
