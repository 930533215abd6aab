"""The command line, in this process and in its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import config, run
from experiments.pipeline import make_plan

ROOT = Path(__file__).resolve().parents[2]
TOY = """
description: Toy.
module: {class_path: tests.experiments.toy.ToyModule}
datamodule: {class_path: tests.experiments.toy.ToyData}
trainer: {max_steps: 12, accelerator: cpu}
checkpoint: {every_n_steps: 3}
callbacks: {losses: {class_path: tests.experiments.toy.LossFile}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY)
    return file


def in_own_process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "experiments/run.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def losses(file: Path) -> list[str]:
    (found,) = file.parent.glob("runs/toy/*/losses.txt")
    return found.read_text().splitlines()


def test_help_list_and_print_config(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(["--help"])
    assert caught.value.code == 0
    assert "quickstart.yaml" in capsys.readouterr().out
    assert run.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(config.shipped_files()) > 0
    assert all(len(line.split(maxsplit=1)) == 2 for line in listed), "an experiment has no description"
    assert run.main([str(file), "seed=7", f"runs_dir={file.parent}/runs", "--print-config"]) == 0
    assert "seed: 7" in capsys.readouterr().out
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sed=1"], "error: sed: unknown key; did you mean seed?"),
        (["other.yaml"], "one experiment at a time"),
        (["--resume", "--force"], "error: --resume goes on and --force starts anew; give one of them"),
        (["--resume"], "error: nothing to resume in"),
        (
            ["trainer.max_stesp=1"],
            "error: trainer.max_stesp: Trainer has no argument max_stesp; did you mean max_steps?",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    file: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([str(file), f"runs_dir={file.parent}/runs", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_without_a_file_it_is_the_quickstart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(config, "find_file", lambda name, near: asked.append(name) or tmp_path / name)
    assert run.main(["seed=1"]) == 2
    assert asked == ["quickstart.yaml"]


def test_a_script_run_from_the_root_and_killed_goes_on(file: Path, tmp_path: Path) -> None:
    """SIGKILL within a fit, the same command again: equal losses and one checkpoint that is whole."""
    runs_dir = f"runs_dir={tmp_path}/runs"
    arguments = f"{{signal_name: SIGKILL, step: 7, marker: {tmp_path}/marker}}"
    kill = f"callbacks.kill={{class_path: tests.experiments.toy.SignalAt, init_args: {arguments}}}"
    killed = in_own_process(str(file), runs_dir, kill)
    assert killed.returncode == -signal.SIGKILL
    assert len(losses(file)) == 7
    again = in_own_process(str(file), runs_dir, kill, "--resume")
    assert again.returncode == 0, again.stderr
    assert "12/12" in again.stderr
    resumed = losses(file)
    (tmp_path / "whole").mkdir()
    whole_file = tmp_path / "whole" / "toy.yaml"
    whole_file.write_text(TOY)
    assert run.main([str(whole_file), f"runs_dir={tmp_path}/whole/runs"]) == 0
    assert resumed[:7] + resumed[8:] == losses(whole_file)
    assert resumed[7] == resumed[6]


def test_ctrl_c_saves_and_says_how_to_go_on(file: Path, tmp_path: Path) -> None:
    arguments = f"{{signal_name: SIGINT, step: 4, marker: {tmp_path}/marker}}"
    stop = f"callbacks.stop={{class_path: tests.experiments.toy.SignalAt, init_args: {arguments}}}"
    stopped = in_own_process(str(file), f"runs_dir={tmp_path}/runs", stop, "--force")
    assert stopped.returncode == 130
    assert "Traceback" not in stopped.stderr
    (checkpoint,) = tmp_path.glob("runs/toy/*/checkpoints/last.ckpt")
    assert f"saved {checkpoint} at step 6" in stopped.stderr
    hint = stopped.stderr.splitlines()[-1]
    assert hint.startswith(f"to go on, run again: python experiments/run.py {file}") and "--force" not in hint
    (planned,) = make_plan(file, [f"runs_dir={tmp_path}/runs", stop]).stages
    assert planned.state == "resume"


def test_a_job_is_stopped_at_once_and_a_second_signal_kills(tmp_path: Path) -> None:
    file = tmp_path / "slow.yaml"
    file.write_text("job: {class_path: tests.experiments.toy.SlowJob}\n")
    command = [sys.executable, "experiments/run.py", str(file), f"runs_dir={tmp_path}/runs"]
    for stubborn, code in ((False, 143), (True, 143)):
        words = ["job.init_args.is_stubborn=true"] if stubborn else []
        process = subprocess.Popen(
            [*command, *words], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(f"runs/*/*/begun-{stubborn}")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        if stubborn:
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert ("to go on, run again" in errors) == (not stubborn)
        assert "Traceback" not in errors


def test_the_script_needs_no_installation(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), "--list"]
    listed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "quickstart.yaml" in listed.stdout
