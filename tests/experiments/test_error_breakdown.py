"""The command that tells where errors sit reads what a comparison and its corpus left."""

import json
from pathlib import Path

import pytest

from experiments.engine.runs import write_config
from experiments.error_breakdown import main


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Write two decodings of two dialogues, and the plan of their corpus."""
    corpus, run = tmp_path / "corpus-1a2b3c4d", tmp_path / "comparison-1a2b3c4d"
    write_config(run / "config.yaml", {"inputs": {"corpus": f"/elsewhere/{corpus.name}"}})
    heard = {"ntp": ["one two three", "four five"], "mdm_4": ["one two tree", "for five"]}
    records = [
        {"id": f"test_{i}", "decoding": name, "gold": gold, "text": gold, "heard": said[i]}
        for name, said in heard.items()
        for i, gold in enumerate(["One two three.", "Four five."])
    ]
    (run / "transcripts.json").write_text(json.dumps(records))
    (corpus / "spoken_examples").mkdir(parents=True)
    plan = [{"id": f"test_{i}", "dialogue": {"intent": intent}} for i, intent in enumerate(("song", "alarm"))]
    (corpus / "spoken_examples" / "plan.json").write_text(json.dumps(plan))
    return run


def test_errors_stand_in_their_columns(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(comparison)]) == 0
    from_first, from_last = capsys.readouterr().out.split("\n\n")
    assert from_first.splitlines()[0].endswith("| 0 | 1 | 2 |") and "by word, from the last" in from_last
    assert from_first.splitlines()[2] == "| words | 2 | 2 | 1 |"
    assert from_first.splitlines()[4] == "| mdm_4 | 50.0 | 0.0 | 100.0 |"
    assert from_last.splitlines()[4] == "| mdm_4 | 50.0 | 50.0 | 0.0 |"
    assert main([str(comparison), "mdm_4", "--by", "kind", "--intervals"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| errors per 100 words, by kind of query | alarm | song |"
    assert table[-1] == "| mdm_4 | 50.0 (50.0 to 50.0) | 33.3 (33.3 to 33.3) |"


def test_errors_stand_by_the_drawn_tempo(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_file = comparison.parent / "corpus-1a2b3c4d" / "spoken_examples" / "plan.json"
    plan = json.loads(plan_file.read_text())
    assert main([str(comparison), "--by", "tempo"]) == 2
    assert "draw no tempo; give a comparison on an expressive one" in capsys.readouterr().err
    for task, tempo in zip(plan, (120, 80), strict=True):
        task["phrases"] = [{"text": "one two", "tempo_percent": tempo}]
    plan_file.write_text(json.dumps(plan))
    assert main([str(comparison), "mdm_4", "--by", "tempo"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith("| 1: 0.80 to 0.80 | 2: 1.20 to 1.20 |")
    assert table[1:] == ["|---|---|---|", "| words | 2 | 3 |", "| mdm_4 | 50.0 | 33.3 |"]


def test_mistakes_are_one_line(comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(comparison), "mtp"]) == 2
    assert "has no decoding 'mtp'; choose among ntp, mdm_4" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "holds no comparison" in capsys.readouterr().err
    write_config(comparison / "config.yaml", {"inputs": {"corpus": "/elsewhere/real"}})
    assert main([str(comparison), "--by", "kind"]) == 2
    assert "has no plan.json; kinds and lags need a synthetic corpus" in capsys.readouterr().err
