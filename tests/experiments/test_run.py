"""The command line, in this process and in its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import run
from experiments.engine.configuration import config
from experiments.engine.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
TOY = """
description: Toy.
module: {class_path: tests.experiments.engine.toy.ToyModule}
datamodule: {class_path: tests.experiments.engine.toy.ToyData}
trainer: {max_steps: 12, accelerator: cpu}
checkpoint: {every_n_steps: 3}
callbacks: {losses: {class_path: tests.experiments.engine.toy.LossFile}}
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
    assert "run.py quickstart" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        run.main(["speak", "--help"])
    assert caught.value.code == 0
    assert {"query=", "text=", "decoding=", "inputs.run="} <= set(capsys.readouterr().out.split())
    assert run.main(["--list"]) == 0
    experiments, stages, at_paper_scale = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert stages.pop(0).startswith("Single stages") and at_paper_scale.pop(0).startswith("At the paper's scale")
    for lines, files in (
        (experiments, config.shipped_files()),
        (stages, config.shipped_stages()),
        (at_paper_scale, config.shipped_at_paper_scale()),
    ):
        assert [line.split()[0] for line in lines] == [config.shipped_name(file) for file in files] != []
        assert all(config.find_file(config.shipped_name(one), Path.cwd()) == one for one in files)
        assert all(len(line.split(maxsplit=1)) == 2 for line in lines), "a file has no description"
    assert run.main([str(file), "seed=7", f"runs_dir={file.parent}/runs", "--print-config"]) == 0
    assert "seed: 7" in capsys.readouterr().out
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sed=1"], "error: sed: unknown key; did you mean seed?"),
        (["other.yaml"], "one experiment at a time"),
        (["--resume", "--force"], "error: --resume continues a run and --force deletes it; give one of them"),
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


TORCH_FREE = """
import contextlib, io, sys
from experiments import run

def stderr_of(*words):
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(SystemExit):
            code = run.main(list(words))
            assert code == (0 if words == ("--list",) else 2), (words, code)
    return errors.getvalue()

for words in {cases!r}:
    print(stderr_of(*words), end="")
heavy = {{"torch", "lightning", "transformers", "numpy"}} & sys.modules.keys()
assert not heavy, heavy
"""


def test_what_needs_no_torch_imports_none(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [\n")
    cases = [
        ("--help",),
        ("--list",),
        ("speak", "--help"),
        ("quickstrat",),
        ("quickstart", "sed=1"),
        ("quickstart", "seed=[1"),
        ("quickstart", "seed=-1"),
        ("quickstart", "stages.codec.inputs.corpus=stage:corpse"),
        ("quickstart", "stages.codec.trainer.max_time=.inf"),
        ("codec", "inputs.corpus=/nowhere"),
        (str(tmp_path / "broken.yaml"),),
    ]
    script = TORCH_FREE.format(cases=cases)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    messages = [
        "there is no experiment quickstrat; did you mean quickstart?",
        "sed: unknown key; did you mean seed?",
        "seed: the value '[1' is not valid YAML",
        "seed: expected a whole number from 0 to 4294967295, got -1",
        "stages.codec.inputs.corpus: there is no earlier stage corpse; did you mean corpus?",
        "stages.codec.trainer.max_time: inf is not a finite number; give one, or write null for no limit",
        "inputs.corpus: there is no file or directory /nowhere",
        "broken.yaml is not valid YAML",
    ]
    lines = done.stdout.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert message in line


def test_a_stage_is_found_by_its_bare_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["codec", f"inputs.corpus={tmp_path}", f"runs_dir={tmp_path}/runs", "--print-config"]) == 0
    assert "lightning_modules.speech_codec.SpeechCodec" in capsys.readouterr().out


def test_without_a_file_it_is_the_quickstart(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    asked = []
    monkeypatch.setattr(config, "find_file", lambda name, near: asked.append(name) or file)
    assert run.main(["seed=1", "--print-config"]) == 0
    assert asked == ["quickstart"]


@pytest.mark.slow
def test_a_script_run_from_the_root_and_killed_resumes(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL within a fit, the same command again: equal losses and one checkpoint that is whole."""
    runs_dir = f"runs_dir={tmp_path}/runs"
    arguments = f"{{signal_name: SIGKILL, step: 7, marker: {tmp_path}/marker}}"
    kill = f"callbacks.kill={{class_path: tests.experiments.engine.toy.SignalAt, init_args: {arguments}}}"
    killed = in_own_process(str(file), runs_dir, kill)
    assert killed.returncode == -signal.SIGKILL
    assert len(losses(file)) == 7
    assert run.main([str(file), runs_dir, kill, "--resume"]) == 0
    assert "12/12" in capsys.readouterr().err
    resumed = losses(file)
    (tmp_path / "whole").mkdir()
    whole_file = tmp_path / "whole" / "toy.yaml"
    whole_file.write_text(TOY)
    assert run.main([str(whole_file), f"runs_dir={tmp_path}/whole/runs"]) == 0
    assert resumed[:7] + resumed[8:] == losses(whole_file)
    assert resumed[7] == resumed[6]


def test_ctrl_c_saves_and_says_how_to_resume(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"{{signal_name: SIGINT, step: 4, marker: {tmp_path}/marker}}"
    stop = f"callbacks.stop={{class_path: tests.experiments.engine.toy.SignalAt, init_args: {arguments}}}"
    assert run.main([str(file), f"runs_dir={tmp_path}/runs", stop, "--force"]) == 130
    errors = capsys.readouterr().err
    (checkpoint,) = tmp_path.glob("runs/toy/*/checkpoints/last.ckpt")
    assert f"saved {checkpoint} at step 6" in errors
    hint = errors.splitlines()[-1]
    assert hint.startswith(f"to resume, run again: python experiments/run.py {file}") and "--force" not in hint
    (planned,) = make_plan(file, [f"runs_dir={tmp_path}/runs", stop]).stages
    assert planned.state == "resume"


def test_a_job_is_stopped_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "slow.yaml"
    file.write_text("job: {class_path: tests.experiments.engine.toy.SlowJob, init_args: {signal_name: SIGTERM}}\n")
    before = signal.getsignal(signal.SIGTERM)
    assert run.main([str(file), f"runs_dir={tmp_path}/runs"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "interrupted: stopped by SIGTERM; finished stages are kept\nto resume, run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "word", "shown"), [("run.py", "--list", "quickstart"), ("report.py", "-h", "--seeds")]
)
def test_a_script_needs_no_installation(tmp_path: Path, script: str, word: str, shown: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "experiments" / script), word]
    listed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert shown in listed.stdout
