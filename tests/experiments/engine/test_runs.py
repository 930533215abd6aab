"""The run of a stage that was used last."""

import os
from pathlib import Path

import pytest

from experiments.engine.configuration.config import find_file
from experiments.engine.configuration.errors import ConfigError
from experiments.engine.plan import make_plan
from experiments.engine.runs import latest_run, read_latest, write_latest

TOY = """
inputs: {run: latest:quick/corpus}
job: {class_path: tests.experiments.engine.toy.ToyJob, init_args: {label: "${inputs.run}"}}
"""


def finish(run: Path, at_s: int) -> Path:
    run.mkdir(parents=True)
    mark = run / "finished.json"
    mark.write_text('{"fingerprint": "' + run.name + '"}')
    os.utime(mark, (at_s, at_s))
    return run


def test_the_newest_run_is_the_one_used_last_or_else_finished_last(tmp_path: Path) -> None:
    assert latest_run(tmp_path, "corpus") is None
    old, new = finish(tmp_path / "corpus-00000001", 1), finish(tmp_path / "corpus-00000002", 2)
    finish(tmp_path / "corpus-of-more-00000003", 3)
    (tmp_path / "corpus-00000004").mkdir()
    assert latest_run(tmp_path, "corpus") == new
    write_latest(tmp_path, {"corpus": old.name, "codec": "codec-1"})
    assert latest_run(tmp_path, "corpus") == old
    write_latest(tmp_path, {"corpus": "corpus-00000004"})  # begun, not finished
    assert latest_run(tmp_path, "corpus") == new
    assert read_latest(tmp_path) == {"corpus": "corpus-00000004", "codec": "codec-1"}


def test_a_run_that_is_missing_names_the_experiment_that_makes_it(tmp_path: Path) -> None:
    for stage, maker in (("comparison", "quickstart"), ("robust_comparison", "hearing"), ("nothing", "quickstart")):
        words = [f"runs_dir={tmp_path}", f"inputs.run=latest:quickstart/{stage}"]
        with pytest.raises(ConfigError, match=f"make one by python experiments/run.py {maker}, or"):
            make_plan(find_file("live", tmp_path), words, check=False)


def test_an_input_may_be_the_latest_run_of_another_experiment(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY)
    words = [f"runs_dir={tmp_path}/runs"]
    message = "^inputs.run: there is no finished run of corpus in .*; make one by python experiments/run.py quick, or"
    with pytest.raises(ConfigError, match=message):
        make_plan(file, words)
    runs = [finish(tmp_path / f"runs/quick/corpus-0000000{number}", number) for number in (1, 2)]
    first = make_plan(file, [*words, f"inputs.run={runs[1]}"]).stages[0]
    latest = make_plan(file, words).stages[0]
    assert latest.config["job"]["init_args"]["label"] == str(runs[1]) and latest.run == first.run
    with pytest.raises(ConfigError, match="^inputs.run: expected latest:PIPELINE/STAGE, got latest:corpus"):
        make_plan(file, [*words, "inputs.run=latest:corpus"])
