"""Rounds of self-distillation: promotion, the frozen teacher, resuming in the middle of a round."""

import copy
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.runtime.last_checkpoint import LastCheckpoint
from callbacks.self_distillation_rounds import SelfDistillationRounds
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from tests import two_ranks
from tests.datamodules.tiny_corpus import write_split
from tests.lightning_modules.talker.conftest import NUM_CODES
from tests.lightning_modules.test_speech_llm import fit, make_batch, make_llm, weights_of

# Lightning warns of the frozen thinker and of loaders without workers; some texts are too long for their speech.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:The replies"),
]

RATES = {"mdm": 0.0, "set_block": 0.7}
HIERARCHICAL = {"scheme": "hierarchical", "block_ratio": [0.5, 1.0], "token_ratio": [0.3, 1.0]}
ROUNDS = [
    {"max_steps": 2, "alpha": 1.0, "num_steps": 2},
    {"max_steps": 3, "temperature": 1.0, "masking": HIERARCHICAL},
    {"alpha": 0.0},
]


class Diary(L.Callback):
    """Records teacher and student before each step."""

    def __init__(self, rounds: SelfDistillationRounds, name: str = "mdm") -> None:
        self.rounds, self.name = rounds, name
        self.teachers: list[dict[str, Tensor]] = []
        self.students: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        self.maskings: list[str] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, SpeechLLM)
        self.teachers.append(copy.deepcopy(self.rounds.teachers[self.name].state_dict()))
        self.students.append(copy.deepcopy(weights_of(pl_module, self.name)))
        talker = pl_module.talkers[self.name]
        assert isinstance(talker, MaskedTalker)
        self.maskings.append(type(talker.masking).__name__)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def are_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("kind", ["mdm", "set_block"])
def test_the_student_becomes_the_teacher_when_a_round_ends(kind: str) -> None:
    rounds = SelfDistillationRounds([kind], ROUNDS)
    diary = Diary(rounds, kind)
    llm = make_llm(kind)
    trainer = fit(llm, 7, callbacks=[rounds, diary])
    for step, teacher in enumerate(diary.teachers):
        promoted_at = 0 if step < 2 else 2 if step < 5 else 5
        assert are_equal(teacher, diary.students[promoted_at]), step
    assert not are_equal(diary.students[2], diary.students[5])
    own = diary.maskings[0]
    assert diary.maskings == [own] * 2 + ["HierarchicalBlockwise"] * 3 + [own] * 2 and own != "HierarchicalBlockwise"
    optimized = {id(one) for group in trainer.optimizers[0].param_groups for one in group["params"]}
    for parameter in rounds.teachers[kind].parameters():
        assert not parameter.requires_grad and parameter.grad is None and id(parameter) not in optimized
    assert not rounds.teachers[kind].training
    assert not any("teacher" in key for key in llm.state_dict()), "a trained talker loads without its teachers"
    assert llm.training_scorers == {}


def test_a_last_round_of_alpha_zero_is_plain_training() -> None:
    plain, distilled = make_llm("mdm"), make_llm("mdm")
    fit(plain, 4)
    fit(distilled, 4, callbacks=[SelfDistillationRounds(["mdm"], [{"alpha": 0.0}])])
    assert are_equal(weights_of(plain, "mdm"), weights_of(distilled, "mdm"))
    other = make_llm("mdm")
    fit(other, 4, callbacks=[SelfDistillationRounds(["mdm"], [{"alpha": 0.7}])])
    assert not are_equal(weights_of(plain, "mdm"), weights_of(other, "mdm"))


def test_other_talkers_train_as_if_alone() -> None:
    alone, beside = make_llm("ntp"), make_llm("ntp", "mdm")
    fit(alone, 6)
    fit(beside, 6, callbacks=[SelfDistillationRounds(["mdm"], ROUNDS)])
    assert are_equal(weights_of(alone, "ntp"), weights_of(beside, "ntp"))


class _SwapTeacher(L.Callback):
    """Gives the teacher other weights just before validation."""

    def __init__(self, rounds: SelfDistillationRounds) -> None:
        self.rounds = rounds

    def on_validation_start(self, *_: Any) -> None:
        for teacher in self.rounds.teachers.values():
            for parameter in teacher.parameters():
                parameter.data.normal_()


def test_validation_scores_the_student_against_clean_tokens_whatever_the_teacher_is() -> None:
    scores = []
    for has_other_teacher in (False, True):
        rounds = SelfDistillationRounds(["mdm"], [{"alpha": 0.9}])
        llm = make_llm("mdm")
        callbacks = [rounds, _SwapTeacher(rounds)] if has_other_teacher else [rounds]
        trainer = fit(llm, 2, callbacks=callbacks, num_sanity_val_steps=0)
        scores.append(float(trainer.callback_metrics["mdm/val/nll"]))
        plain = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        plain.validate(llm, DataLoader([make_batch(99)], batch_size=None), verbose=False)
        assert scores[-1] == float(plain.callback_metrics["mdm/val/nll"]), "the score without any rounds"
    assert scores[0] == scores[1]


def test_talkers_of_one_training_may_have_rounds_of_their_own(tmp_path: Path) -> None:
    own = [SelfDistillationRounds([name], [{"max_steps": 2, "alpha": alpha}, {}]) for name, alpha in RATES.items()]
    trainer = fit(make_llm(*RATES), 3, callbacks=own)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    states = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]
    assert [set(states[one.state_key]["teachers"]) for one in own] == [{name} for name in RATES]


def test_a_round_without_improvement_ends() -> None:
    rounds = SelfDistillationRounds(["mdm"], [{"patience": 2}, {}], decoding_steps=())
    llm = make_llm("mdm", learning_rate=1e-30)  # too small to change a weight
    fit(llm, 6, callbacks=[rounds], val_check_interval=1)
    progress = rounds.state_dict()["progress"]["mdm"]
    assert progress["index"] == 1
    assert progress["first_step"] == 3, "the first validation sets the best score, two more do not improve on it"


def test_rounds_and_decoding_at_their_ends_are_logged(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="mdm", version="")
    rounds = SelfDistillationRounds(["mdm"], ROUNDS, decoding_steps=[8, 1], num_decoded=2)
    fit(make_llm("mdm"), 6, callbacks=[rounds], logger=[logger])
    events = EventAccumulator(str(tmp_path / "mdm"))
    events.Reload()
    assert [event.value for event in events.Scalars("distillation/round")] == [0, 0, 1, 1, 1, 2]
    assert [event.value for event in events.Scalars("distillation/teacher_steps")] == [2, 2, 4, 4, 4, 4]
    for steps in (8, 1):
        rates = events.Scalars(f"decode/token_error_rate_{steps}")
        assert [event.step for event in rates] == [2, 5]
        assert all(event.value > 0 for event in rates)


def resumable_fit(folder: Path, corpus: Path, stop: L.Callback | None = None) -> tuple[SpeechLLM, Diary]:
    """Train until the end or until ``stop`` stops it, from the checkpoint if there is one."""
    llm = make_llm("mdm")
    rounds = SelfDistillationRounds(["mdm"], ROUNDS, decoding_steps=())
    diary = Diary(rounds)
    last = folder / "last.ckpt"
    trainer = L.Trainer(
        max_steps=7,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[rounds, diary, LastCheckpoint(last, every_n_steps=1), *([stop] if stop else [])],
    )
    data = SpokenDialogueDataModule(str(corpus), batch_size=2, validation_index=None, test_index=None)
    trainer.fit(llm, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=False)
    return llm, diary


class _StopAt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


class KillAt(L.Callback):
    """Kills the process, as a crash does, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def stop_in_process(folder: Path, corpus: Path, step: int) -> None:
    resumable_fit(folder, corpus, _StopAt(step))


def kill(folder: Path, corpus: Path, step: int) -> None:
    """Train in a separate process, which is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([two_ranks.__name__])
    process = context.Process(target=resumable_fit, args=(folder, corpus, KillAt(step)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("end", "stop"), [(stop_in_process, 1), (stop_in_process, 2), (stop_in_process, 4), (kill, 4)])
def test_stopping_inside_a_round_and_resuming_equals_no_stop(
    tmp_path: Path, end: Callable[[Path, Path, int], None], stop: int
) -> None:
    write_split(tmp_path, "train", 14, num_codes=NUM_CODES)
    whole, whole_diary = resumable_fit(tmp_path / "whole", tmp_path)
    end(tmp_path / "parts", tmp_path, stop)
    resumed, diary = resumable_fit(tmp_path / "parts", tmp_path)
    assert len(whole_diary.losses) == 7
    assert diary.losses == whole_diary.losses[stop:]
    assert diary.maskings == whole_diary.maskings[stop:]
    for teacher, expected in zip(diary.teachers, whole_diary.teachers[stop:], strict=True):
        assert are_equal(teacher, expected)
    assert are_equal(weights_of(resumed, "mdm"), weights_of(whole, "mdm"))


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([{}, {}], r"rounds\[0\] never ends"),
        ([{"max_steps": 0}, {}], r"rounds\[0\]\.max_steps is 0"),
        ([{"max_steps": 3}], r"rounds\[0\]\.max_steps is 3, but the last round"),
        ([{"aplha": 0.7}], r"unknown keys \['aplha'\]"),
        ([{"alpha": 7}], "alpha is 7"),
        ([{"masking": {"scheme": "blocks"}}], r"rounds\[0\]\.masking has scheme 'blocks'; choose one of global"),
        ([], "at least one talker and one round"),
    ],
)
def test_impossible_rounds_are_refused(rounds: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfDistillationRounds(["mdm"], rounds)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"talkers": ["mdn"]}, "no talker 'mdn'"),
        ({"talkers": ["ntp"]}, "'ntp' masks nothing"),
        ({"rounds": [{"max_steps": 2}, {"max_steps": 3}, {}]}, "before the last one take 5 steps, but .* after 5"),
        ({"rounds": [{"max_steps": 2}, {}], "decoding_steps": [3]}, "num_steps is 3; this talker"),
    ],
)
def test_rounds_that_do_not_fit_the_training_are_refused_up_front(settings: dict[str, Any], message: str) -> None:
    rounds = SelfDistillationRounds(**{"talkers": ["mdm"], **settings})
    llm = make_llm("ntp", "mdm")
    with pytest.raises(UserError, match=message):
        rounds.check(llm, max_steps=5)
    with pytest.raises(UserError, match=message):
        fit(llm, 5, callbacks=[rounds])


def test_rounds_that_may_end_early_or_have_an_unknown_end_are_not_refused() -> None:
    patient = SelfDistillationRounds(["mdm"], [{"max_steps": 50, "patience": 1}, {"patience": 1}, {}])
    patient.check(make_llm("mdm"), max_steps=5)
    SelfDistillationRounds(["mdm"], ROUNDS).check(make_llm("mdm"), max_steps=float("inf"))
    SelfDistillationRounds(["mdm"], decoding_steps=[3]).check(make_llm("mdm"), max_steps=5)  # one round: no decoding


@pytest.mark.parametrize("settings", [{"decoding_steps": [4, 0]}, {"num_decoded": -1}])
def test_numbers_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"self-distillation: {next(iter(settings))} is"):
        SelfDistillationRounds(["mdm"], **settings)
