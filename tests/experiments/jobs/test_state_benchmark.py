"""The benchmark of text states makes its epoch from a small corpus, and measures both ways to get them."""

import json
from pathlib import Path

import pytest

from datamodules.conversion.corpus_converter import CorpusConverter
from datamodules.shards.sharded_examples import ConvertedCorpus
from experiments.jobs.state_benchmark import StateBenchmark
from experiments.jobs.text_state_writer import TextStateWriter
from tests.datamodules.tiny_corpus import write_split
from tests.lightning_modules.test_speech_llm import make_thinker

# On a machine with one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def test_it_measures_what_its_table_shows(tmp_path: Path) -> None:
    write_split(tmp_path / "loose", "train", 20)
    index, shards = tmp_path / "loose/spoken_examples/train.json", tmp_path / "shards"
    CorpusConverter(str(index), [str(tmp_path / "loose")], num_workers=0).run(shards)
    TextStateWriter(make_thinker(), {"corpus": ConvertedCorpus(str(shards))}, None).run(shards)
    benchmark = StateBenchmark(
        str(shards), str(shards), make_thinker(), num_examples=90, num_measured=40, num_rounds=2, num_workers=0,
        max_tokens=120,
    )  # fmt: skip
    found = benchmark.run(tmp_path)
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["num_examples"] == 90 and measured["num_bytes"] > 90 * (4 + 2 * 32)
    assert 0 < found["thinker"] < found["stored"]
    assert 1 < found["speedup_min"] <= found["speedup"] <= found["speedup_max"]
    assert 0 < measured["rss_1_mb"] and 0 < measured["rss_4_mb"] and 0 < measured["resume_s"]
    assert "| examples of the epoch | 90 |" in (tmp_path / "results.md").read_text()


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="num_rounds is 0"):
        StateBenchmark("a", "b", make_thinker(), num_rounds=0)
