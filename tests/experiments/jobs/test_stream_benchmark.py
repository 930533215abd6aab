"""The benchmark of reading measures both ways of it on the same corpus."""

import json
from pathlib import Path

import pytest

from datamodules.conversion.corpus_converter import CorpusConverter
from experiments.jobs.stream_benchmark import StreamBenchmark
from tests.datamodules.tiny_corpus import write_split

# On a machine with one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def test_it_measures_what_its_table_shows(tmp_path: Path) -> None:
    write_split(tmp_path / "loose", "train", 80)
    index = tmp_path / "loose/spoken_examples/train.json"
    CorpusConverter(str(index), [str(tmp_path / "loose")], num_workers=0).run(tmp_path / "shards")
    loose = str(tmp_path / "loose")
    benchmark = StreamBenchmark(
        str(tmp_path / "shards"), str(index), loose, loose, num_workers=0, max_tokens=120, num_examples=40, num_rounds=2
    )
    found = benchmark.run(tmp_path)
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["num_examples"] == 80
    assert 0 <= measured["shards_padding"] < measured["plain_padding"] < 1
    assert 0 < measured["speedup_min"] <= measured["speedup"] <= measured["speedup_max"]
    assert measured["shards_examples_per_s_min"] <= found["shards_examples_per_s"]
    assert 0 < found["resume_s"] < 5 and found["log_mel_rows_ms"] > 0
    assert 0 < measured["rss_first_mb"] <= 1.5 * measured["rss_second_mb"]
    table = (tmp_path / "results.md").read_text()
    assert "| examples of the corpus | 80 |" in table and f"{measured['speedup']:.2f} (" in table
    assert (
        f"| hours of queries per second | {found['shards_hours_per_s']:.2f} | {found['plain_hours_per_s']:.2f} |"
        in table
    )


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="num_rounds is 0"):
        StreamBenchmark("a", "b", "c", "d", num_rounds=0)
