"""A fit that was stopped at any step resumes as if nothing had happened."""

import signal
from pathlib import Path

import pytest
import torch

from callbacks.runtime.signals import Interrupted, interruptible
from experiments.engine.pipeline import execute
from experiments.engine.plan import make_plan
from experiments.engine.stage import StageResult

EXPERIMENT = """
module: {class_path: tests.experiments.engine.toy.ToyModule}
datamodule: {class_path: tests.experiments.engine.toy.ToyData}
trainer: {max_steps: 12, accelerator: cpu, enable_progress_bar: false}
callbacks: {losses: {class_path: tests.experiments.engine.toy.LossFile}}
"""


def run(directory: Path, *overrides: str) -> StageResult:
    file = directory / "toy.yaml"
    directory.mkdir(exist_ok=True)
    file.write_text(EXPERIMENT)
    with interruptible():
        (result,) = execute(make_plan(file, [f"runs_dir={directory}/runs", *overrides]))
    return result


def stop_at(directory: Path, step: int, *overrides: str, hook: str = "train_batch", name: str = "SIGTERM") -> str:
    """Return the override that stops the run once at a step; the run directory does not depend on it being stopped."""
    arguments = f"{{signal_name: {name}, step: {step}, marker: {directory}/marker, hook: {hook}}}"
    return f"callbacks.stop={{class_path: tests.experiments.engine.toy.SignalAt, init_args: {arguments}}}"


def losses_of(result: StageResult) -> list[str]:
    return (result.run.directory / "losses.txt").read_text().splitlines()


def weights_of(result: StageResult) -> dict[str, torch.Tensor]:
    return torch.load(result.run.checkpoint_file, weights_only=True)["state_dict"]


VARIANTS = [
    pytest.param((), (0, 3, 4, 5, 9, 11), id="validation at each epoch"),
    pytest.param(("trainer.val_check_interval=2",), (1, 4, 8), id="validation within epochs"),
    pytest.param(("trainer.max_steps=-1", "trainer.max_epochs=3"), (4, 5, 14), id="epochs"),
    pytest.param(("trainer.accumulate_grad_batches=2", "trainer.max_steps=6"), (0, 2, 5), id="accumulation"),
    pytest.param(("datamodule.init_args.num_rows=4",), (0, 5), id="epochs of one batch"),
]


@pytest.mark.parametrize(("overrides", "steps"), VARIANTS)
def test_stopped_at_any_step_equals_uninterrupted(
    tmp_path: Path, overrides: tuple[str, ...], steps: tuple[int, ...]
) -> None:
    whole = run(tmp_path / "whole", *overrides)
    for step in steps:
        directory = tmp_path / str(step)
        stop = stop_at(directory, step)
        with pytest.raises(Interrupted) as caught:
            run(directory, *overrides, stop)
        assert caught.value.exit_code == 128 + signal.SIGTERM
        resumed = run(directory, *overrides, stop)
        assert losses_of(resumed) == losses_of(whole)
        for name, weight in weights_of(whole).items():
            torch.testing.assert_close(weights_of(resumed)[name], weight, rtol=0, atol=0)


def test_stopped_in_validation_resumes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    for step in (5, 10):
        directory = tmp_path / str(step)
        stop = stop_at(directory, step, hook="validation")
        with pytest.raises(Interrupted):
            run(directory, stop)
        assert losses_of(run(directory, stop)) == losses_of(whole)
