"""Several devices through the command line: two processes on a CPU, as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.engine.configuration.config import EXPERIMENTS_DIR, read_file
from experiments.engine.pipeline import execute
from experiments.engine.plan import make_plan
from tests.experiments.test_quickstart import tiny_overrides

ROOT = Path(__file__).resolve().parents[2]
TOY = """
description: Toy
threads: 2
stages:
  corpus:
    job: {class_path: tests.experiments.engine.toy.ToyJob, init_args: {number: 4}}
  line:
    inputs: {corpus: "stage:corpus"}
    module: {class_path: tests.experiments.engine.toy.ToyModule}
    datamodule:
      class_path: tests.experiments.engine.toy.ToyData
      init_args: {root: "${inputs.corpus}", num_rows: 40}
    trainer: {max_steps: 12, accelerator: cpu, devices: 2, strategy: ddp, enable_progress_bar: false}
    checkpoint: {every_n_steps: 3}
    callbacks: {losses: {class_path: tests.experiments.engine.toy.RankLossFile}}
    test: true
  after:
    job: {class_path: tests.experiments.engine.toy.ToyJob, init_args: {number: 5}}
"""
KILL = "stages.line.callbacks.kill={{class_path: tests.experiments.engine.toy.SignalAt, init_args: {arguments}}}"


def command(folder: Path, *words: str, launcher: tuple[str, ...] = (sys.executable,)) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "toy.yaml").write_text(TOY)
    return [*launcher, "experiments/run.py", str(folder / "toy.yaml"), f"runs_dir={folder}/runs", *words]


def run(folder: Path, *words: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess[str]:
    whole = command(folder, *words, launcher=launcher)
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def run_of(folder: Path, stage: str) -> Path:
    (found,) = (folder / "runs" / "toy").glob(f"{stage}-*")
    return found


def losses(folder: Path) -> dict[str, list[str]]:
    """Loss lines by rank, the last one of each step: what a kill undid is done again."""
    files = sorted(run_of(folder, "line").glob("losses-*.txt"))
    return {file.name: list(dict(line.split() for line in file.read_text().splitlines()).items()) for file in files}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_of(folder, "line") / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_two_devices_train_and_one_process_keeps_the_records(whole: Path) -> None:
    again = run(whole)
    assert again.returncode == 0 and again.stdout.count(": reused") == 3
    assert (run_of(whole, "corpus") / "count.txt").read_text() == "1", "a job runs once"
    assert json.loads((run_of(whole, "line") / "finished.json").read_text())["metrics"].keys() >= {"test/loss"}
    first, second = losses(whole).values()
    assert [step for step, _ in first] == [step for step, _ in second] == [str(step) for step in range(1, 13)]
    assert first != second, "each device draws dropout of its own"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_resumes_after_sigkill_of_either_process(tmp_path: Path, whole: Path, rank: int) -> None:
    arguments = f"{{signal_name: SIGKILL, step: 7, marker: {tmp_path}/marker, rank: {rank}}}"
    kill = KILL.format(arguments=arguments)
    started_s = time.monotonic()
    killed = run(tmp_path, kill)
    assert killed.returncode != 0 and time.monotonic() - started_s < 120
    if rank == 1:
        # Lightning may kill this process before work with the other one fails.
        assert killed.returncode in (128 + signal.SIGTERM, -signal.SIGKILL)
        assert "a process of this training ended with code -9; run again to resume" in killed.stderr
    assert (tmp_path / "marker").exists() and not (run_of(tmp_path, "line") / "finished.json").exists()
    resumed = run(tmp_path, kill, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes in" in resumed.stdout
    assert losses(tmp_path) == losses(whole)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=0, atol=0)


@pytest.mark.slow
def test_ctrl_c_of_one_process_saves_on_all_and_resumes_on_fewer_devices(tmp_path: Path) -> None:
    arguments = f"{{signal_name: SIGINT, step: 4, marker: {tmp_path}/marker, rank: 1}}"
    stop = KILL.format(arguments=arguments)
    stopped = run(tmp_path, stop)
    assert stopped.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM), stopped.stderr
    assert "at step 5" in stopped.stderr and "to resume, run again: python experiments/run.py" in stopped.stderr
    file = run_of(tmp_path, "line") / "checkpoints" / "last.ckpt"
    assert torch.load(file, weights_only=True)["global_step"] == 5
    fewer = run(tmp_path, stop, "stages.line.trainer.devices=1", "stages.line.trainer.strategy=auto", "--resume")
    assert fewer.returncode == 0, fewer.stderr
    steps = {name: [int(step) for step, _ in lines] for name, lines in losses(tmp_path).items()}
    assert steps == {"losses-0.txt": list(range(1, 13)), "losses-1.txt": list(range(1, 6))}


@pytest.mark.slow
def test_a_launcher_that_starts_all_processes_at_once(tmp_path: Path, whole: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    done = run(tmp_path, launcher=torchrun)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("corpus: done") == done.stdout.count("line: done") == 1, "one process prints"
    assert (run_of(tmp_path, "after") / "count.txt").read_text() == "1"
    assert losses(tmp_path) == losses(whole)
    assert run(tmp_path, "--force", launcher=torchrun).returncode != 0


@pytest.mark.slow
def test_slurm_as_lightning_finds_it(tmp_path: Path, whole: Path) -> None:
    """Two tasks of one step on one node, with the environment that `srun` gives them."""
    job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_STEP_ID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "GLOO_SOCKET_IFNAME": "lo"}
    tasks = []
    for rank in range(2):
        environment = {**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        tasks.append(subprocess.Popen(command(tmp_path), cwd=ROOT, env=environment, **pipes))
    printed, errors = zip(*(task.communicate(timeout=240) for task in tasks), strict=True)
    assert [task.returncode for task in tasks] == [0, 0], errors
    assert "line: done" in printed[0] and printed[1] == "", "the first task prints"
    assert (run_of(tmp_path, "corpus") / "count.txt").read_text() == "1"
    assert losses(tmp_path) == losses(whole)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Run a tiny quickstart up to the talkers; give the words of the command line that lead there."""
    runs = tmp_path_factory.mktemp("quickstart")
    words = ["quickstart", *tiny_overrides(runs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = make_plan(EXPERIMENTS_DIR / "quickstart.yaml", words[1:] + [f"stages.{stage}=null" for stage in LATER])
        execute(plan)
    return words


LATER = ("talkers", "distilled_talkers", "comparison")
ROUNDS = "[{max_steps: 2, alpha: 0.7, num_steps: 2}, {alpha: 0.5, num_steps: 2}]"


def on_two_devices(words: list[str], *stages: str) -> list[str]:
    places = {"devices": 2, "strategy": "ddp", "accelerator": "cpu"}
    found = [f"stages.{stage}.trainer.{key}={value}" for stage in stages for key, value in places.items()]
    for stage in ("talkers", "distilled_talkers"):
        found += [f"stages.{stage}.trainer.max_steps=4", f"stages.{stage}.trainer.val_check_interval=2"]
    rounds = f"stages.distilled_talkers.callbacks.self_distillation.init_args.rounds={ROUNDS}"
    return [*words, *found, "stages.talkers.checkpoint.every_n_steps=1", rounds]


def run_words(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "experiments/run.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slow
def test_the_quickstart_trains_distils_and_compares_on_two_devices_and_resumes_after_sigkill(
    quickstart: list[str], tmp_path: Path
) -> None:
    """Stage 2, killed on the way; stage 3 with a teacher promoted on the way; the comparison, all on two devices."""
    words = on_two_devices(quickstart, *LATER)
    arguments = f"{{signal_name: SIGKILL, step: 2, marker: {tmp_path}/marker, rank: 1}}"
    kill = (
        f"stages.talkers.callbacks.kill={{class_path: tests.experiments.engine.toy.SignalAt, init_args: {arguments}}}"
    )
    killed = run_words(*words, kill)
    assert killed.returncode in (128 + signal.SIGTERM, -signal.SIGKILL), killed.stderr[-2000:]
    done = run_words(*words, kill)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "talkers: resumes in" in done.stdout and done.stdout.count("comparison: done") == 1
    folder = Path(next(word for word in words if word.startswith("runs_dir=")).removeprefix("runs_dir=")) / "quickstart"
    (distilled,) = folder.glob("distilled_talkers-*")
    checkpoint = torch.load(distilled / "checkpoints" / "last.ckpt", weights_only=True)
    (rounds,) = (state for key, state in checkpoint["callbacks"].items() if "SelfDistillationRounds" in key)
    assert rounds["progress"]["mdm"]["index"] == 1 and rounds["progress"]["mdm"]["first_step"] == 2
    events = EventAccumulator(str(distilled / "tensorboard" / "mdm"))
    events.Reload()
    assert [event.value for event in events.Scalars("distillation/round")] == [0.0]
    assert len(events.Scalars("decode/token_error_rate_4")) == 1, "the promotion decodes"
    (comparison,) = folder.glob("comparison-*")
    rows = json.loads((comparison / "results.json").read_text())
    assert {row["num_examples"] for row in rows} == {2}, "the examples of both devices"


SPLIT = "{class_path: lightning_modules.sharding.strategy.FullyShardedStrategy}"


@pytest.mark.slow
def test_a_split_thinker_resumes_after_sigkill_and_the_next_stage_reads_its_checkpoint(tmp_path: Path) -> None:
    """The first stage of a thinker under FSDP2, killed on the way; the second one reads its directory of shares."""
    trained = ("thinker_pretraining", "thinker")
    words = ["quickstart", *tiny_overrides(tmp_path / "runs", trained)]
    kept = ("corpus", "tokenizer", *trained)
    stages = read_file(EXPERIMENTS_DIR / "quickstart.yaml")["stages"]
    words += [f"stages.{stage}=null" for stage in stages if stage not in kept]
    arguments = f"{{signal_name: SIGKILL, step: 2, marker: {tmp_path}/marker, rank: 1}}"
    signal_at = f"{{class_path: tests.experiments.engine.toy.SignalAt, init_args: {arguments}}}"
    places = {"devices": 2, "strategy": SPLIT, "accelerator": "cpu", "max_steps": 4, "val_check_interval": 4}
    words += [f"stages.thinker_pretraining.trainer.{key}={value}" for key, value in places.items()]
    words += [f"stages.thinker_pretraining.callbacks.kill={signal_at}"]
    refused = run_words(*words)
    assert refused.returncode == 2 and "muon needs whole matrices" in refused.stderr, refused.stderr[-2000:]
    words += ["stages.thinker_pretraining.module.init_args.muon=false"]
    words += ["stages.thinker_pretraining.checkpoint.every_n_steps=1"]
    killed = run_words(*words)
    assert killed.returncode in (128 + signal.SIGTERM, -signal.SIGKILL), killed.stderr[-2000:]
    done = run_words(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "thinker_pretraining: resumes in" in done.stdout and "] thinker: done" in done.stdout
    (file,) = (tmp_path / "runs" / "quickstart").glob("thinker_pretraining-*/checkpoints/last.ckpt")
    assert file.is_symlink() and torch.load(file / "rest.pt", weights_only=True)["global_step"] == 4
