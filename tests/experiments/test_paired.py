"""The command that compares two decodings reads what comparisons wrote, and matches dialogues by id."""

import json
from pathlib import Path

import pytest

from experiments.paired import main


def write_run(folder: Path, heard: dict[str, str], gold: str = "one two three four") -> Path:
    folder.mkdir()
    records = [
        {"id": name, "decoding": "mdm_4", "gold": gold, "text": "one two three five", "heard": words}
        for name, words in heard.items()
    ]
    (folder / "transcripts.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    first = write_run(tmp_path / "a", {"x": "one two three four", "y": "one two three four", "only_here": ""})
    return first, write_run(tmp_path / "b", {"y": "one two three five", "x": "one two three four"})


def test_dialogues_are_matched_by_their_id(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{run}:mdm_4" for run in runs]) == 0
    said = capsys.readouterr().out
    assert "WER against gold: 0.00 % and 12.50 %, difference +12.50 points" in said
    assert "over 2 dialogues; 1 that only one answered are left out" in said
    assert main([*(f"{run}:mdm_4" for run in runs), "--against", "text"]) == 0
    assert "WER against text: 25.00 % and 12.50 %, difference -12.50 points" in capsys.readouterr().out


def test_mistakes_are_one_line(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = f"{runs[0]}:mdm_4"
    other = write_run(tmp_path / "c", {"x": "one"}, gold="one")
    strange = write_run(tmp_path / "d", {"z": "one"})
    for bad, message in (
        (f"{runs[0]}:ntp", "has no decoding 'ntp'; choose among mdm_4"),
        (f"{tmp_path}:mdm_4", "no comparison; give RUN:DECODING"),
        ("mdm_4", "no comparison; give RUN:DECODING"),
        (f"{other}:mdm_4", "x has the replies 'one two three four' and 'one'"),
        (f"{strange}:mdm_4", "no dialogue in common"),
    ):
        assert main([good, bad]) == 2
        assert message in capsys.readouterr().err
