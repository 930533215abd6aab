"""The page of results: means and spreads over the seeds of experiments that compare."""

from pathlib import Path

import pytest

from experiments import report, run

COMPARISON = """description: Two toy talkers
seed: 1
stages:
  first:
    job: {class_path: tests.experiments.engine.toy.ToyJob}
  comparison:
    job:
      class_path: tests.experiments.engine.toy.ToyComparison
      init_args: {rates: RATES, factor: "${seed}"}
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "toys.yaml"
    file.write_text(COMPARISON.replace("RATES", "{original audio: 0.01, mdm_4: 0.1}"))
    return file


def test_means_and_spreads_over_seeds(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 3):
        assert run.main([str(experiment), f"seed={seed}"]) == 0
    capsys.readouterr()
    assert report.main([str(experiment), "--seeds", "1,3"]) == 0
    page = capsys.readouterr().out
    lines = page.splitlines()
    assert "| original audio | - | - | - | 2.00 ± 1.41 | 2.00 ± 1.41 | - | - | - |" in lines
    assert "| mdm_4 | mdm | 4 | - | 20.00 ± 14.14 | 20.00 ± 14.14 | 90.0 ± 0.0 | 200 ± 141 | 4.0 ± 0.0 |" in lines
    assert lines[-1] == "mean ± standard deviation over seeds 1, 3; 100 test dialogues per run"
    assert lines[2] == f"Made from finished runs by `python experiments/report.py {experiment} --seeds 1,3`."
    assert f"python experiments/run.py {experiment} seed=3" in lines
    assert report.main([str(experiment)]) == 0
    assert "| mdm_4 | mdm | 4 | - | 10.00 (5.0 to 15.0) | 10.00 | 90.0 | 100 | 4.0 |" in capsys.readouterr().out


def test_seeds_may_be_those_of_a_group(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grouped = (
        COMPARISON.replace("  comparison:\n", "  comparison:\n    seed_group: toys\n")
        + "aliases: {toy_seed: {key: seeds.toys}}\n"
    )
    experiment.write_text(grouped.replace("RATES", "{original audio: 0.01, mdm_4: 0.1}"))
    for seed in (1, 3):
        assert run.main([str(experiment), f"toy_seed={seed}"]) == 0
    assert capsys.readouterr().out.count("first: reused") == 1
    assert report.main([str(experiment), "--seeds", "1,3", "--key", "toy_seed"]) == 0
    page = capsys.readouterr().out
    assert "| original audio | - | - | - | 2.00 ± 1.41 |" in page and f"run.py {experiment} toy_seed=3" in page
    assert "--seeds 1,3 --key toy_seed`" in page


def test_overrides_lead_to_the_runs_made_with_them(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    override = "stages.comparison.job.init_args.factor=2"
    assert run.main([str(experiment), override]) == 0
    capsys.readouterr()
    assert report.main([str(experiment)]) == 2
    error = capsys.readouterr().err
    assert f"comparison is not finished; run first: python experiments/run.py {experiment} seed=1" in error
    assert report.main([str(experiment), override]) == 0
    assert "| mdm_4 | mdm | 4 | - | 20.00 (10.0 to 30.0) |" in capsys.readouterr().out


def test_what_does_not_compare_is_refused(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([str(experiment)]) == 0
    assert report.main([str(experiment), "--seeds", "1,1"]) == 2
    assert "have the seeds [1, 1]" in capsys.readouterr().err
    mute = tmp_path / "mute.yaml"
    mute.write_text("description: Says nothing\njob: {class_path: tests.experiments.engine.toy.ToyJob}\n")
    assert run.main([str(mute), "seed=1"]) == 0
    capsys.readouterr()
    assert report.main([str(mute)]) == 2
    assert "compares and measures nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        report.main([str(experiment), "--seeds", "one"])


def test_runs_that_compared_other_decodings_are_refused(experiment: Path, tmp_path: Path) -> None:
    other = tmp_path / "others.yaml"
    other.write_text(COMPARISON.replace("RATES", "{original audio: 0.01, mdm_1: 0.1}"))
    for file, seed in ((experiment, 1), (other, 2)):
        assert run.main([str(file), f"seed={seed}"]) == 0
    folders = [folder.parent for folder in sorted((tmp_path / "runs").glob("*/comparison-*/results.json"))]
    with pytest.raises(ValueError, match=r"differ in what they compared: mdm_1, mdm_4"):
        report.tabulate(folders)
    with pytest.raises(FileNotFoundError, match="holds no comparison"):
        report.tabulate([tmp_path])


def test_what_a_job_measured_stands_as_it_wrote_it_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measuring = tmp_path / "measuring.yaml"
    job = "{class_path: tests.experiments.engine.toy.ToyMeasuringJob}"
    measuring.write_text(f"description: Measures\nruns_dir: {tmp_path}\nstages:\n  speed: {{job: {job}}}\n")
    assert run.main([str(measuring), "seed=3"]) == 0
    capsys.readouterr()
    assert report.main([str(measuring), "--seeds", "3"]) == 0
    page = capsys.readouterr().out
    assert "`speed`, seed 3:\n\n| rate |\n|---|\n| 12 |" in page
    assert "seed=3" in page
