"""A job that judges the kept weights of several trainings, chooses for each talker, and draws what training buys."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from callbacks.kept_weights import find_kept
from datamodules.formats.atomic_files import write_text
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from experiments.engine.artifacts import read_config
from experiments.engine.runs import write_json
from experiments.jobs.budgets.choices import CHOICE
from experiments.jobs.budgets.chosen import load_talker_weights
from experiments.jobs.budgets.curves import draw_curves, write_board
from experiments.jobs.budgets.points import RULE, Point, by_trial, choose, edges_of
from experiments.jobs.budgets.training_flops import count_flops_per_reply
from experiments.jobs.budgets.validation_dialogues import ValidationDialogues
from experiments.jobs.decoding.machine import find_device
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.speech_recognizer import SpeechRecognizer

POINTS, FLOPS = "points.json", "flops_per_reply.json"


class RateChoice:
    """Gives every talker the same number of trials, and each what suits it best.

    The kept weights of all trials speak the validation dialogues under every decoding, a batch at a time, and
    :data:`~experiments.jobs.budgets.points.RULE` chooses trial and step of each talker, which ``choice.json`` holds and
    :func:`~experiments.jobs.budgets.chosen.load_chosen` reads. ``points.json`` has the word errors of each dialogue and
    grows while the job runs: one that was killed judges none again.

    Word errors over steps and over floating point operations of the training are drawn into ``curves.png`` and, with
    the same tags for all talkers, into a TensorBoard run for each talker and trial; ``results.md`` has both in words. A
    point of a curve is a moment of one training whose learning rate falls to its end, no training of that length.

    Args:
        module: Thinker, vocoder, decodings, and the talkers as the trials train them; their weights are replaced.
        datamodule: Queries and speech tokens of the validation dialogues.
        recognizer: The judge.
        trials: Run directories of trainings that differ in learning rates and kept weights.
        max_dialogues: Validation dialogues that are asked, from the first on; all if None.
        num_counted_batches: Batches on which the cost of training is counted.

    Raises:
        UserError: If there is no trial, a talker has no decoding, or a number is below 1.
    """

    def __init__(
        self,
        module: SpeechLLM,
        datamodule: SpokenDialogueDataModule,
        recognizer: SpeechRecognizer,
        trials: Sequence[str],
        max_dialogues: int | None = None,
        num_counted_batches: int = 4,
    ) -> None:
        require_at_least(1, max_dialogues=max_dialogues, num_counted_batches=num_counted_batches)
        if not trials:
            raise UserError("trials: give the run directory of at least one training")
        self.deciding: dict[str, str] = {}
        for name, decoding in module.decodings.items():
            self.deciding.setdefault(decoding.talker, name)
        mute = [name for name in module.talkers if name not in self.deciding]
        if mute:
            raise UserError(f"decodings: {mute[0]} has none, by which it could be judged; name one")
        self.module, self.datamodule, self.recognizer = module, datamodule, recognizer.eval()
        self.trials = [Path(one) for one in trials]
        self.max_dialogues, self.num_counted_batches = max_dialogues, num_counted_batches

    def run(self, output_dir: Path) -> dict[str, float]:
        """Judge, choose, and write.

        Args:
            output_dir: The run directory of this job.

        Returns:
            Learning rate, steps and validation WER of each talker.

        Raises:
            FileNotFoundError: If a trial has kept no weights.
        """
        device = find_device()
        self.module.eval().to(device)
        self.recognizer.to(device)
        self.datamodule.setup("validate")
        flops = self._flops_per_step(output_dir, device)
        points = self._judge(output_dir, device, flops)
        chosen = choose(points, self.deciding)
        write_json(output_dir / CHOICE, self._as_record(points, chosen))
        draw_curves(points, chosen).savefig(output_dir / "curves.png", dpi=120)
        write_board(points, self.deciding, output_dir / "tensorboard")
        table = _table(points, chosen)
        write_text(output_dir / "results.md", table)
        write_text(output_dir / "summary.txt", table)
        found: dict[str, float] = {}
        for name, one in chosen.items():
            found |= {
                f"{name}/learning_rate": one.learning_rate,
                f"{name}/steps": one.step,
                f"{name}/wer": one.wer.value,
            }
        return found

    def _flops_per_step(self, output_dir: Path, device: torch.device) -> dict[Path, dict[str, float]]:
        """Give the operations of a step of each trial, by talker."""
        file = output_dir / FLOPS
        if not file.is_file():
            batches = islice(self.datamodule.val_dataloader(), self.num_counted_batches)
            write_json(file, count_flops_per_reply(self.module, (one.to(device) for one in batches)))
        per_reply = json.loads(file.read_text(encoding="utf-8"))
        return {
            trial: {name: own * _replies_per_step(read_config(trial)) for name, own in per_reply.items()}
            for trial in self.trials
        }

    def _judge(self, output_dir: Path, device: torch.device, flops: Mapping[Path, Mapping[str, float]]) -> list[Point]:
        """Count the errors of all decodings with all kept weights; what an earlier run has counted is kept."""
        file = output_dir / POINTS
        points = [Point(**one) for one in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []
        known = {(one.trial, one.step) for one in points}
        kept = [(trial, step, file) for trial in self.trials for step, file in find_kept(trial).items()]
        todo = [one for one in kept if (one[0].name, one[1]) not in known]
        if not todo:
            return points
        with torch.autocast(device.type, torch.bfloat16):  # as a test decodes
            batches = (one.to(device) for one in self.datamodule.val_dataloader())
            dialogues = ValidationDialogues(self.module, self.recognizer, batches, self.max_dialogues)
            for trial, step, weights in tqdm(todo, desc="judging kept weights", unit="step"):
                for name, talker in self.module.talkers.items():
                    load_talker_weights(talker, weights, name)
                rates = _rates_of(read_config(trial))
                for name, decoding in self.module.decodings.items():
                    errors, words = (tuple(one.tolist()) for one in dialogues.count_errors(name))
                    talker_name = decoding.talker
                    rate = rates.get(talker_name, rates[""])
                    cost = flops[trial][talker_name] * step
                    points.append(Point(trial.name, talker_name, name, rate, step, cost, errors, words))
                write_json(file, [asdict(one) for one in points])
        return points

    def _as_record(self, points: Sequence[Point], chosen: Mapping[str, Point]) -> dict[str, Any]:
        kept = {
            trial.name: {step: file.relative_to(trial.parent) for step, file in find_kept(trial).items()}
            for trial in self.trials
        }
        return {
            "rule": RULE,
            "num_trials": len(self.trials),
            "num_dialogues": len(points[0].errors),
            "talkers": {
                name: {
                    "decoding": one.decoding,
                    "trial": one.trial,
                    "learning_rate": one.learning_rate,
                    "step": one.step,
                    "flops": one.flops,
                    "weights": str(kept[one.trial][one.step]),
                    "wer": [one.wer.value, one.wer.low, one.wer.high],
                    "at_edge": edges_of(points, one),
                }
                for name, one in chosen.items()
            },
        }


def _replies_per_step(config: Mapping[str, Any]) -> int:
    """Give the replies of an optimizer step on one device."""
    size = config["datamodule"]["init_args"].get("batch_size")
    if size is None:
        raise UserError("a trial's data module has no batch_size: operations are counted for steps of as many replies")
    return int(size) * int((config.get("trainer") or {}).get("accumulate_grad_batches", 1))


def _rates_of(config: Mapping[str, Any]) -> dict[str, float]:
    """Give the peak learning rates of a training by talker, and under "" that of all others."""
    given = config["module"]["init_args"]
    return {"": float(given["learning_rate"]), **(given.get("talker_learning_rates") or {})}


def _table(points: Sequence[Point], chosen: Mapping[str, Point]) -> str:
    """Lay out the best of each trial beside the choice."""
    wer, difference = "WER % on validation (95 %)", "minus the chosen, points (95 %)"
    head = ("talker, decoding", "rate", "of steps", "chosen", "steps", "TFLOP", wer, difference)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, best in chosen.items():
        for line in by_trial([one for one in points if one.decoding == best.decoding]).values():
            one = choose(line, {name: best.decoding})[name]
            ends = ", ".join(edges_of(points, best))
            mark = "" if one != best else f"yes; {ends} tried" if ends else "yes"
            cells = [
                f"{name}, {one.decoding}",
                f"{one.learning_rate:g}",
                line[-1].step,
                mark,
                one.step,
                f"{one.flops / 1e12:.3g}",
                one.wer.in_percent(),
                "-" if one == best else one.minus(best).in_percent(sign=True),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    about = (
        f"Chosen: {RULE}; {len(points[0].errors)} dialogues. TFLOP: matrix products of the talker's "
        "training, forward and backward, counted and not timed."
    )
    return "\n".join([*lines, "", about]) + "\n"
