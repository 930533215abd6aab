"""A job that computes the memory that the stages of an experiment need on each device, without weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from callbacks.self_distillation_rounds import SelfDistillationRounds
from datamodules.batch import SAMPLE_RATE_HZ
from datamodules.formats.atomic_files import write_text
from experiments.engine.artifacts import without_weights
from experiments.engine.configuration.builder import build
from experiments.engine.configuration.config import find_file
from experiments.engine.configuration.errors import join
from experiments.engine.plan import PlannedStage, make_plan
from experiments.engine.runs import write_json
from experiments.engine.stage import quiet
from experiments.jobs.cost.full_size_losses import BatchSize, talker_loss, thinker_loss
from experiments.jobs.cost.saved_tensors import AsOnGpu, saved_bytes
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive
from lightning_modules.speech_llm import SpeechLLM

GB = 1e9
# Parts that stand in a line of their own; the first prefix of a parameter's name counts.
PARTS = ("thinker.speech_encoder", "thinker.adaptor", "thinker.language_model", "talkers.", "vocoder")


@dataclass(frozen=True)
class PartSize:
    """Parameters of one part.

    Attributes:
        num_trainable: Numbers that train.
        num_frozen: Numbers that do not.
        trainable_bytes: What the former take; their gradients take as much.
        frozen_bytes: What the latter take.
        num_trainable_tensors: Tensors that train.
    """

    num_trainable: int
    num_frozen: int
    trainable_bytes: int
    frozen_bytes: int
    num_trainable_tensors: int

    @property
    def optimizer_bytes(self) -> int:
        """AdamW's two means in the parameters' own precision, and its counter of steps for each tensor."""
        return 2 * self.trainable_bytes + 4 * self.num_trainable_tensors


class MemoryEstimate:
    """Builds each training stage of an experiment at full size on the meta device, and counts bytes per device.

    Parameters, gradients and the state of AdamW are counted; activations are what autograd saves in one training step,
    taken on the meta device, where attention saves what the fused kernels of a GPU do. What single operations need for
    a moment, and what an allocator wastes, is not in it: all figures are estimates. What a run of an experiment has
    measured stands in its TensorBoard runs, as ``train/peak_memory_gb``.

    Args:
        experiment: Name or file of the experiment.
        overrides: Overrides as on the command line, such as "inputs.language_model=PATH".
        num_units: Speech tokens of each reply; None for the budget of the data module, evenly over its examples.
        num_rows: Dialogues of a batch; None for as many as the data module allows.
        num_text_tokens: Text tokens of each reply.
        num_prompt_tokens: Tokens of the chat template.
        query_s: Length of each query.
        num_shards: Devices that share parameters, gradients and optimizer state (FSDP2); 1 where each holds all.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        experiment: str,
        overrides: Sequence[str] = (),
        num_units: int | None = None,
        num_rows: int | None = None,
        num_text_tokens: int = 150,
        num_prompt_tokens: int = 40,
        query_s: float = 10.0,
        num_shards: int = 1,
    ) -> None:
        require_at_least(1, num_text_tokens=num_text_tokens, num_prompt_tokens=num_prompt_tokens, num_shards=num_shards)
        require_at_least(1, num_units=num_units, num_rows=num_rows)
        require_positive(query_s=query_s)
        self.experiment, self.overrides = experiment, list(overrides)
        self.num_units, self.num_rows = num_units, num_rows
        self.num_text_tokens, self.num_prompt_tokens = num_text_tokens, num_prompt_tokens
        self.query_s, self.num_shards = query_s, num_shards

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `memory.md` and `memory.json`, and print the former.

        Returns:
            The estimated gigabytes of each stage.

        Raises:
            UserError: If no stage of the experiment trains a speech LLM with AdamW.
        """
        found = {planned.stage.name: self.estimate(planned, *built) for planned, *built in self.stages()}
        write_json(Path(output_dir) / "memory.json", found)
        table = to_markdown(self.experiment, found)
        write_text(Path(output_dir) / "memory.md", table)
        print(table)
        return {f"{name}/estimate_gb": sum(stage["gb"].values()) for name, stage in found.items()}

    def stages(self) -> Iterator[tuple[PlannedStage, SpeechLLM, dict[str, nn.Module]]]:
        """Build the stages that train a speech LLM one by one, without weights.

        Yields:
            A stage, its module and its teachers by name.

        Raises:
            UserError: If there is none.
        """
        plan = make_plan(find_file(self.experiment, Path.cwd()), self.overrides, check=False)
        stages = [one for one in plan.stages if one.config["module"] is not None and one.config["fit"]]
        is_any = False
        for planned in stages:
            with quiet(), without_weights({one.run.directory: one.config for one in plan.stages}):
                module, teachers = build_without_weights(planned)
            if isinstance(module, SpeechLLM):
                is_any = True
                yield planned, module, teachers
        if not is_any:
            raise UserError(f"{self.experiment}: no stage trains a SpeechLLM; name an experiment with such a stage")

    def estimate(self, planned: PlannedStage, module: SpeechLLM, teachers: dict[str, nn.Module]) -> dict[str, Any]:
        """Estimate the memory of a stage, whose module comes to the precision that it computes in.

        Raises:
            UserError: If it trains with Muon, or the size of a batch is unknown.
        """
        if module.muon:
            raise UserError(f"{planned.stage.path}: memory is computed for AdamW only; set module.init_args.muon=false")
        trainer = planned.config["trainer"]
        precision = str(trainer.get("precision", "32-true"))
        if precision == "bf16-true":
            module.to(torch.bfloat16)
        sizes = sizes_of(module, teachers)
        num_devices = int(trainer.get("devices", 1)) * int(trainer.get("num_nodes", 1))
        trainable = sum(size.trainable_bytes for size in sizes.values())
        shared = {
            "parameters": sum(size.trainable_bytes + size.frozen_bytes for size in sizes.values()),
            "gradients": trainable,
            "optimizer": sum(size.optimizer_bytes for size in sizes.values()),
        }
        gb = {name: value / self.num_shards / GB for name, value in shared.items()}
        if self.num_shards > 1:
            gb["gathered_layers"] = 2 * max(layer_bytes(module)) / GB  # the one in work and the next one
        elif num_devices > 1:
            gb["gradient_buckets"] = trainable / GB
        if precision == "bf16-mixed":
            gb["cast_weights"] = sum(
                2 * one.numel() for one in module.parameters() if one.requires_grad and one.dtype == torch.float32
            ) / GB  # fmt: skip
            module.to(torch.bfloat16)  # what autocast computes in
        batch = self.batch_of(planned)
        gb["activations"] = activation_bytes(module, batch) / GB
        return {
            "parts": {name: vars(size) for name, size in sizes.items()},
            "num_devices": num_devices,
            "num_shards": self.num_shards,
            "precision": precision,
            "batch_of_a_device": vars(batch),
            "gb": gb,
            "label": "estimate",
        }

    def batch_of(self, planned: PlannedStage) -> BatchSize:
        """Give the batch of a device.

        Raises:
            UserError: If neither the data module nor this object says it.
        """
        data = planned.config["datamodule"]["init_args"]
        num_rows = self.num_rows or data.get("max_examples") or data.get("batch_size")
        budget = data.get("max_tokens")
        num_units = self.num_units or (budget // num_rows if budget and num_rows else None)
        if num_rows is None or num_units is None:
            raise UserError(
                f"{planned.stage.path}.datamodule has no max_examples and max_tokens; set num_rows and num_units"
            )
        return BatchSize(num_rows, num_units, self.num_text_tokens, self.num_prompt_tokens, self.query_s)


def build_without_weights(planned: PlannedStage) -> tuple[Any, dict[str, nn.Module]]:
    """Build the module of a stage on the meta device, with its teachers if it has any.

    Returns:
        The module, and frozen copies of its talkers by name.
    """
    path = planned.stage.path
    with torch.device("meta"):
        module = build(planned.config["module"], join(path, "module"))
        callbacks = build(planned.config["callbacks"], join(path, "callbacks")).values()
    teachers: dict[str, nn.Module] = {}
    for callback in callbacks:
        if isinstance(callback, SelfDistillationRounds):
            settings = {key: False for key in ("logger", "enable_checkpointing", "enable_progress_bar")}
            trainer = Trainer(max_steps=10**9, accelerator="cpu", **settings)
            callback.on_train_start(trainer, module)
            teachers |= callback.teachers
    return module, teachers


def sizes_of(module: nn.Module, teachers: dict[str, nn.Module]) -> dict[str, PartSize]:
    """Count the parameters of a speech LLM by part, those of teachers apart."""
    parameters = list(module.named_parameters())
    for name, teacher in teachers.items():
        parameters += [(f"teachers.{name}.{own}", one) for own, one in teacher.named_parameters()]
    by_part: dict[str, list[Tensor]] = {}
    for name, one in parameters:
        prefix = next((part for part in PARTS if name.startswith(part)), "")
        depth = 1 if prefix == "vocoder" else 2
        by_part.setdefault(".".join(name.split(".")[:depth]), []).append(one)
    return {name: _size_of(own) for name, own in by_part.items()}


def _size_of(parameters: Sequence[Tensor]) -> PartSize:
    trainable = [one for one in parameters if one.requires_grad]
    frozen = [one for one in parameters if not one.requires_grad]
    numbers = (sum(one.numel() for one in own) for own in (trainable, frozen))
    num_bytes = (sum(one.numel() * one.element_size() for one in own) for own in (trainable, frozen))
    return PartSize(*numbers, *num_bytes, len(trainable))


def layer_bytes(module: nn.Module) -> list[int]:
    """Give the bytes of each layer of each stack of layers, which FSDP2 gathers one at a time."""
    stacks = [one for one in module.modules() if isinstance(one, nn.ModuleList)]
    return [sum(p.numel() * p.element_size() for p in layer.parameters()) for stack in stacks for layer in stack] or [0]


def activation_bytes(llm: SpeechLLM, batch: BatchSize) -> int:
    """Count what autograd saves in a training step of a speech LLM on the meta device.

    Args:
        llm: Built on the meta device, in the precision that it computes in.
        batch: The batch of a device.

    Returns:
        Bytes.
    """
    weights = [*llm.parameters(), *llm.buffers()]
    with AsOnGpu():
        total = 0 if llm.thinker_objective is None else saved_bytes(lambda: thinker_loss(llm, batch), weights)
        if llm.talkers:
            total += saved_bytes(lambda: talker_loss(llm, batch), weights)
    return total


def to_markdown(experiment: str, found: dict[str, dict[str, Any]]) -> str:
    """Lay the figures out as tables, each labelled as what it is."""
    lines = [f"Memory of {experiment} on each device, computed without weights (all figures: estimate).", ""]
    for name, stage in found.items():
        batch = BatchSize(**stage["batch_of_a_device"])
        lines += [
            f"### {name}",
            "",
            f"{stage['num_devices']} devices, {stage['num_shards']} of them share parameters; {stage['precision']}; a "
            f"batch of {batch.num_rows} replies of {batch.num_units} speech and {batch.num_text_tokens} text tokens, "
            f"queries of {batch.query_s:g} s ({batch.num_rows * batch.query_s * SAMPLE_RATE_HZ / 1e6:.2f} M samples).",
            "",
            "| part | trains | frozen |",
            "|---|---|---|",
            *(
                f"| {part} | {size['num_trainable']:,} | {size['num_frozen']:,} |"
                for part, size in stage["parts"].items()
            ),
            "",
            "| on each device | GB | |",
            "|---|---|---|",
            *(f"| {what.replace('_', ' ')} | {gb:.2f} | {stage['label']} |" for what, gb in stage["gb"].items()),
            f"| together | {sum(stage['gb'].values()):.2f} | {stage['label']} |",
            "",
        ]
    return "\n".join(lines)
