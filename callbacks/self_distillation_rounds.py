"""Rounds of self-distillation: a frozen teacher for each talker, replaced by its student when a round ends."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from jiwer import process_words
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.masked_talkers import find_masked_talkers
from datamodules.batch import SpokenBatch
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.base import TalkerOutput
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.streaming import states_of_row
from lightning_modules.talker.masked.distillation import SelfDistillation
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masking.schedule import read_levels
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.training.reduction import gather_over_ranks

DISTILLATION_KEYS = {one.name for one in fields(SelfDistillation)}
ROUND_KEYS = DISTILLATION_KEYS | {"max_steps", "patience", "masking"}


class SelfDistillationRounds(Callback):
    """Lets talkers learn from frozen copies of themselves, round by round.

    At the start of a round the student becomes the teacher. A round ends after ``max_steps`` optimizer steps, or when
    the talker's ``val/nll`` has not improved for ``patience`` validations, whichever comes first; the last round lasts
    to the end of training. Teachers have no gradients and no optimizer state. Teachers and the state of the rounds are
    part of each checkpoint, so that a resumed run equals an uninterrupted one.

    Args:
        talkers: Names of masked-diffusion talkers.
        rounds: One mapping per round with any of ``alpha``, ``temperature``, ``num_steps`` (of the teacher),
            ``on_policy_share`` and ``certainty_weight`` (see :class:`SelfDistillation`), ``masking`` (``scheme`` and
            ranges as of :class:`MaskingSchedule`; the talker's own if left out) and what ends the round, ``max_steps``
            or ``patience`` or both; neither for the last one.
        decoding_steps: Steps per block with which validation replies are decoded at the end of each round.
        num_decoded: Number of validation replies to decode.

    Raises:
        UserError: If a round is impossible, or a number is out of range.

    Reference: arXiv 2602.08607, iterative self-distillation.
    """

    def __init__(
        self,
        talkers: Sequence[str],
        rounds: Sequence[Mapping[str, Any]] = ({},),
        decoding_steps: Sequence[int] = (4, 1),
        num_decoded: int = 16,
    ) -> None:
        if not talkers or not rounds:
            raise UserError("self-distillation: name at least one talker and one round")
        for index, one in enumerate(rounds):
            _check_round(index, one, is_last=index == len(rounds) - 1)
        for steps in decoding_steps:
            require_at_least(1, **{"self-distillation: decoding_steps": steps})
        require_at_least(0, **{"self-distillation: num_decoded": num_decoded})
        self.talkers = list(talkers)
        self.rounds = [dict(one) for one in rounds]
        self.settings = [
            SelfDistillation(**{key: one[key] for key in DISTILLATION_KEYS & one.keys()}) for one in self.rounds
        ]
        self.maskings = [
            read_levels(f"self-distillation: rounds[{index}].masking", one["masking"]) if one.get("masking") else None
            for index, one in enumerate(rounds)
        ]
        self.decoding_steps, self.num_decoded = tuple(decoding_steps), num_decoded
        self.teachers: dict[str, MaskedTalker] = {}
        self._students: dict[str, MaskedTalker] = {}
        self._progress = {name: _Progress() for name in self.talkers}
        self._saved_teachers: dict[str, dict[str, Tensor]] = {}

    @property
    def state_key(self) -> str:
        """Key that tells the states of several such callbacks in one training apart: each has talkers of its own."""
        return f"{type(self).__name__}[{','.join(self.talkers)}]"

    def check(self, module: LightningModule, max_steps: float) -> None:
        """Refuse rounds that do not fit a module or the length of its training.

        Args:
            module: The module to train.
            max_steps: Optimizer steps of the training; infinity if it is not known.

        Raises:
            UserError: If a talker is unknown, masks nothing or cannot decode in ``decoding_steps``, or if the rounds
                before the last one take all steps.
        """
        students = find_masked_talkers(module, self.talkers, "self-distillation")
        if len(self.rounds) > 1 and self.num_decoded:
            for name, student in students.items():
                for steps in self.decoding_steps:
                    student.check(Decoding(name, steps))
        # A round with patience may end early, so that only those without it are sure to last their max_steps.
        sure = sum(one["max_steps"] for one in self.rounds[:-1] if one.get("patience") is None)
        if sure >= max_steps:
            raise UserError(
                f"self-distillation: the rounds before the last one take {sure} steps, but training ends after "
                f"{max_steps:g}; shorten them or train longer"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the rounds."""
        self.check(pl_module, trainer.estimated_stepping_batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the teachers: those of the checkpoint, which every strategy has restored by now, or of the students."""
        assert isinstance(pl_module, SpeechLLM)
        self._students = find_masked_talkers(pl_module, self.talkers, "self-distillation")
        for name, student in self._students.items():
            self.teachers[name] = copy.deepcopy(student).requires_grad_(False).eval()
            if name in self._saved_teachers:
                self.teachers[name].load_state_dict(self._saved_teachers[name])
            self._distil(pl_module, name)
        self._saved_teachers = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the teachers away: the talkers score without them again."""
        assert isinstance(pl_module, SpeechLLM)
        for name in self.talkers:
            pl_module.training_scorers.pop(name, None)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the rounds that are over before this step, and log the round."""
        assert isinstance(pl_module, SpeechLLM)
        for name in self.talkers:
            if self._is_over(self._progress[name], trainer.global_step):
                self._promote(trainer, pl_module, name)
            progress = self._progress[name]
            if trainer.global_step % pl_module.log_every_n_steps == 0:
                settings = self.settings[progress.index]
                scalars = {"round": progress.index, "alpha": settings.alpha, "teacher_steps": settings.num_steps}
                tagged: dict[str, Tensor | float] = {f"distillation/{tag}": value for tag, value in scalars.items()}
                pl_module.log_scalars(name, tagged, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validations without improvement."""
        if trainer.sanity_checking:
            return
        for name, progress in self._progress.items():
            nll = float(trainer.callback_metrics[f"{name}/val/nll"])
            progress.num_without_gain = 0 if nll < progress.best_nll else progress.num_without_gain + 1
            progress.best_nll = min(nll, progress.best_nll)

    def state_dict(self) -> dict[str, Any]:
        """Give the teachers and the state of the rounds, for the checkpoint."""
        return {
            "progress": {name: vars(progress).copy() for name, progress in self._progress.items()},
            "teachers": {name: teacher.state_dict() for name, teacher in self.teachers.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the rounds; the teachers are restored when training starts.

        Raises:
            UserError: If the checkpoint holds rounds of other talkers.
        """
        if state_dict["progress"].keys() != self._progress.keys():
            raise UserError(
                f"self-distillation: the checkpoint has rounds of {sorted(state_dict['progress'])}, not of "
                f"{sorted(self._progress)}; name the same talkers or start a new run"
            )
        self._progress = {name: _Progress(**values) for name, values in state_dict["progress"].items()}
        self._saved_teachers = state_dict["teachers"]

    def _is_over(self, progress: "_Progress", global_step: int) -> bool:
        if progress.index + 1 == len(self.rounds):
            return False
        max_steps, patience = (self.rounds[progress.index].get(key) for key in ("max_steps", "patience"))
        is_long_enough = max_steps is not None and global_step - progress.first_step >= max_steps
        return is_long_enough or (patience is not None and progress.num_without_gain >= patience)

    def _promote(self, trainer: Trainer, pl_module: SpeechLLM, name: str) -> None:
        student, progress = self._students[name], self._progress[name]
        self.teachers[name].load_state_dict(student.state_dict())
        rates = self._decode(trainer, pl_module, name, student)
        if rates:
            pl_module.log_scalars(name, rates, trainer.global_step)
        self._progress[name] = _Progress(index=progress.index + 1, first_step=trainer.global_step)
        self._distil(pl_module, name)

    def _distil(self, pl_module: SpeechLLM, name: str) -> None:
        student, index = self._students[name], self._progress[name].index
        pl_module.training_scorers[name] = _Distiller(student, self.teachers[name], self.settings[index])
        if any(self.maskings):  # otherwise masks are not this callback's
            levels = self.maskings[index]
            student.masking = levels.build() if levels else student.evaluation_masking

    @torch.no_grad()
    def _decode(
        self, trainer: Trainer, pl_module: SpeechLLM, name: str, student: MaskedTalker
    ) -> dict[str, Tensor | float]:
        """Give token error rates of few-step decoding on the first validation replies."""
        loaders = trainer.val_dataloaders
        if not loaders or not self.decoding_steps or not self.num_decoded:
            return {}
        was_training = student.training
        student.eval()
        gold: list[str] = []
        spoken: dict[int, list[str]] = {steps: [] for steps in self.decoding_steps}
        for batch in loaders:
            assert isinstance(batch, SpokenBatch) and batch.units is not None and batch.unit_lengths is not None
            with pl_module.whole_weights():
                text = pl_module.read_text(batch.to(pl_module.device))
            for row in range(min(len(batch), self.num_decoded - len(gold))):
                units = batch.units[row, : int(batch.unit_lengths[row])]
                gold.append(" ".join(map(str, units.tolist())))
                max_blocks = 2 * (len(units) // student.block_size + 1)
                for steps, rows in spoken.items():
                    chunks = student.stream(states_of_row(text, row), max_blocks, Decoding(name, steps))
                    rows.append(" ".join(str(code) for chunk in chunks for code in chunk.tokens.tolist()))
            if len(gold) == self.num_decoded:
                break
        student.train(was_training)
        of_all = gather_over_ranks((gold, spoken), trainer.world_size)
        gold = [reply for own, _ in of_all for reply in own]
        return {
            f"decode/token_error_rate_{steps}": process_words(
                gold, [reply for _, own in of_all for reply in own[steps]]
            ).wer
            for steps in self.decoding_steps
        }


class _Progress:
    """Where a talker stands in its rounds."""

    def __init__(
        self, index: int = 0, first_step: int = 0, best_nll: float = float("inf"), num_without_gain: int = 0
    ) -> None:
        self.index = index
        self.first_step = first_step
        self.best_nll = best_nll
        self.num_without_gain = num_without_gain


class _Distiller:
    """Scores a training batch against a teacher, with the signature of a talker's forward."""

    def __init__(self, student: MaskedTalker, teacher: MaskedTalker, settings: SelfDistillation) -> None:
        self.student, self.teacher, self.settings = student, teacher, settings

    def __call__(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator
    ) -> TalkerOutput:
        batch = self.student.corrupt(text, units, unit_lengths, generator)
        return self.student.distil(self.teacher, batch, self.settings, generator)


def _check_round(index: int, one: Mapping[str, Any], is_last: bool) -> None:
    where = f"self-distillation: rounds[{index}]"
    unknown = sorted(one.keys() - ROUND_KEYS)
    if unknown:
        raise UserError(f"{where} has unknown keys {unknown}; a round has {sorted(ROUND_KEYS)}")
    for key in ("max_steps", "patience"):
        value = one.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{where}.{key} is {value!r}; give a whole number of at least 1")
        if is_last and value is not None:
            raise UserError(
                f"{where}.{key} is {value!r}, but the last round lasts to the end of training; leave it out"
            )
    if not is_last and one.get("max_steps") is None and one.get("patience") is None:
        raise UserError(f"{where} never ends; give max_steps or patience, or make it the last one")
