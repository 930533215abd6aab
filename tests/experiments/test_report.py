"""The table of results: means and spreads of runs that compare."""

import json
from pathlib import Path

import pytest

from experiments import report


def write_run(folder: Path, seed: int, wer: dict[tuple[str, int | None], float]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    rows = [
        {
            "talker": talker,
            "steps": steps,
            "num_examples": 100,
            "wer_micro": rate,
            "wer_macro": rate,
            "text_exact_match": None if steps is None else 0.9,
            "tokens_per_s": None if steps is None else 100.0 * seed,
            "forwards_per_block": steps,
        }
        for (talker, steps), rate in wer.items()
    ]
    (folder / "results.json").write_text(json.dumps(rows))
    return folder


def test_means_and_spreads_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {("original audio", None): 0.01, ("mdm", 4): 0.1}
    runs = [write_run(tmp_path / str(seed), seed, {key: rate * seed for key, rate in rates.items()}) for seed in (1, 3)]
    assert report.main([str(run) for run in runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| original audio | - | 2.00 ± 1.41 | 2.00 ± 1.41 | - | - | - |"
    assert lines[3] == "| mdm | 4 | 20.00 ± 14.14 | 20.00 ± 14.14 | 90.0 ± 0.0 | 200 ± 141 | 4.0 ± 0.0 |"
    assert lines[-1] == "mean ± standard deviation over seeds 1, 3; 100 test dialogues a run"
    assert "| mdm | 4 | 10.00 | 10.00 | 90.0 | 100 | 4.0 |" in report.tabulate(runs[:1])


def test_runs_that_do_not_compare_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", 1, {("mdm", 4): 0.1})
    same_seed = write_run(tmp_path / "same", 1, {("mdm", 4): 0.2})
    other = write_run(tmp_path / "other", 2, {("mdm", 1): 0.2})
    for runs, message in (
        ([one, same_seed], "have the seeds [1, 1]"),
        ([one, other], "differ in what they compared: ('mdm', 1), ('mdm', 4)"),
        ([tmp_path], "holds no comparison"),
    ):
        assert report.main([str(run) for run in runs]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
