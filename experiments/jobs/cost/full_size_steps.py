"""A job that takes training steps of an experiment at full size with drawn weights, and measures memory and time."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.runtime.training_cost import peak_memory_gb
from datamodules.batch import SAMPLE_RATE_HZ
from datamodules.formats.atomic_files import write_text
from experiments.engine.plan import PlannedStage
from experiments.engine.runs import write_json
from experiments.jobs.cost.full_size_losses import BatchSize, talker_loss, thinker_loss
from experiments.jobs.cost.memory_estimate import MemoryEstimate
from experiments.jobs.decoding.machine import find_device, wait_for
from experiments.jobs.decoding.statistics import Spread, spread_of
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.training.optimization import BETAS

PRECISIONS = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}


class FullSizeSteps:
    """Takes training steps of each stage of an experiment on one device, and holds its memory against the estimate.

    Modules are built at full size, their weights drawn: neither time nor memory depends on what they are. A step runs
    the frozen speech encoder where the stage does, the losses, backward, clipping and AdamW, in the precision of the
    stage's trainer. The first steps, in which memory is first reserved and state made, are not timed.

    Args:
        estimate: The experiment and its batch.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        num_steps: Steps that are timed.
        num_warm_ups: Steps before them.
        only_stages: Names of the stages that are measured; all if None.
        seed: Of weights and queries.

    Raises:
        UserError: If a number is out of range, the device is unknown, or the estimate is for several devices.
    """

    def __init__(
        self,
        estimate: MemoryEstimate,
        device: str = "auto",
        num_steps: int = 5,
        num_warm_ups: int = 2,
        only_stages: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        require_at_least(1, num_steps=num_steps, num_warm_ups=num_warm_ups)
        if estimate.num_shards != 1:
            raise UserError(f"estimate.num_shards is {estimate.num_shards}; steps are measured on one device: give 1")
        self.estimate, self.num_steps, self.num_warm_ups = estimate, num_steps, num_warm_ups
        self.device = find_device(device)
        self.only_stages, self.seed = only_stages, seed

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `steps.md` and `steps.json`, and print the former.

        Returns:
            The median milliseconds of a step of each stage.

        Raises:
            UserError: If no stage trains a speech LLM, or none is of a name that is asked for.
        """
        found: dict[str, dict[str, Any]] = {}
        for planned, module, teachers in self.estimate.stages():
            name = planned.stage.name
            if self.only_stages is None or name in self.only_stages:
                print(f"{self.estimate.experiment}, {name}: weights are drawn, then steps are taken", flush=True)
                found[name] = self._measure(planned, module, teachers)
            del module, teachers
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if not found:
            raise UserError(f"only_stages names none of the stages that train in {self.estimate.experiment}")
        machine = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        write_json(Path(output_dir) / "steps.json", {"device": machine, "stages": found})
        table = _to_markdown(self.estimate.experiment, machine, found)
        write_text(Path(output_dir) / "steps.md", table)
        print(table)
        return {f"{name}/step_ms": stage["step_ms"].median for name, stage in found.items()}

    def _measure(self, planned: PlannedStage, module: SpeechLLM, teachers: dict[str, nn.Module]) -> dict[str, Any]:
        batch, precision = self.estimate.batch_of(planned), str(planned.config["trainer"].get("precision", "32-true"))
        if precision not in PRECISIONS:
            raise UserError(
                f"{planned.stage.path}.trainer.precision is {precision!r}: choose one of {list(PRECISIONS)}"
            )
        if precision == "bf16-true":
            module.to(torch.bfloat16)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        generator = torch.Generator(self.device).manual_seed(self.seed)
        draw([module, *teachers.values()], self.device, generator)
        trainable = [one for one in module.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-5, betas=BETAS, fused=self.device.type == "cuda")
        is_mixed = precision == "bf16-mixed"
        taken_ms = []
        for _ in range(self.num_warm_ups + self.num_steps):
            wait_for(self.device)
            start = time.perf_counter()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=is_mixed):
                loss = self._loss(module, batch, generator)
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            wait_for(self.device)
            taken_ms.append(1000 * (time.perf_counter() - start))
        peak_gb = peak_memory_gb(self.device) if self.device.type == "cuda" else None
        replace_tensors([module, *teachers.values()], lambda one: one.to("meta"))  # counting needs no memory
        estimated = self.estimate.estimate(planned, module, teachers)
        step_ms = spread_of(taken_ms[self.num_warm_ups :])
        return {
            "step_ms": step_ms,
            "speech_tokens_per_s": 1000 * batch.num_rows * batch.num_units / step_ms.median,
            "peak_gb": peak_gb,
            "estimated_gb": sum(estimated["gb"].values()),
            "precision": precision,
            "batch": vars(batch),
        }

    def _loss(self, module: SpeechLLM, batch: BatchSize, generator: torch.Generator) -> Tensor:
        """Do what a step of the stage does: all of its losses."""
        losses = []
        if module.thinker_objective is not None:
            shape = batch.num_rows, round(batch.query_s * SAMPLE_RATE_HZ)
            query = torch.randn(shape, device=self.device, generator=generator)
            with torch.no_grad():
                module.thinker.speech_encoder(query, torch.full((batch.num_rows,), shape[1], device=self.device))
            losses.append(thinker_loss(module, batch))
        if module.talkers:
            losses.append(talker_loss(module, batch))
        return torch.stack(losses).sum()


@torch.no_grad()
def draw(modules: Sequence[nn.Module], device: torch.device, generator: torch.Generator) -> None:
    """Give modules that have no weights some on a device, small ones; whole numbers among their buffers are zeros."""
    replace_tensors(modules, lambda one: torch.empty_like(one, device=device))
    for module in modules:
        for one in module.parameters():
            one.normal_(0.0, 0.02, generator=generator)
        for one in module.buffers():
            if one.is_floating_point():
                one.uniform_(generator=generator)
            else:
                one.zero_()


def replace_tensors(modules: Sequence[nn.Module], function: Callable[[Tensor], Tensor]) -> None:
    """Put other tensors in the place of all parameters and buffers; what is shared stays shared."""
    known: dict[int, Tensor] = {}
    kept = []  # or another tensor would get the number of one that is gone
    for module in modules:
        for part in module.modules():
            for own in (part._parameters, part._buffers):
                for name, one in own.items():
                    if one is None:
                        continue
                    if id(one) not in known:
                        kept.append(one)
                        new = function(one.detach())
                        is_parameter = isinstance(one, nn.Parameter)
                        known[id(one)] = nn.Parameter(new, one.requires_grad) if is_parameter else new
                        known[id(known[id(one)])] = known[id(one)]
                    own[name] = known[id(one)]  # type: ignore[assignment]


def _to_markdown(experiment: str, machine: str, found: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"Training steps of {experiment}, full size, drawn weights, {machine}; medians (10th to 90th percentile).",
        "",
        "| stage | batch | step, ms | speech tokens/s | peak memory, GB (measured) | GB (estimate) |",
        "|---|---|---|---|---|---|",
    ]
    for name, stage in found.items():
        batch, step = BatchSize(**stage["batch"]), Spread(*stage["step_ms"])
        peak = "" if stage["peak_gb"] is None else f"{stage['peak_gb']:.2f}"
        lines.append(
            f"| {name} | {batch.num_rows} replies of {batch.num_units}, {stage['precision']} | {step.median:,.1f} "
            f"({step.low:,.1f} to {step.high:,.1f}) | {stage['speech_tokens_per_s']:,.0f} | {peak} | "
            f"{stage['estimated_gb']:.2f} |"
        )
    return "\n".join(lines) + "\n"
