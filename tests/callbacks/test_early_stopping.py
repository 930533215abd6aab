"""Early stopping of talkers side by side: only when all have waited, and the same when resumed."""

from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.early_stopping import EarlyStoppingOfAll
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from tests.lightning_modules.test_speech_llm import fit, make_llm

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
NAMES = ("ntp", "mdm")


class Named(SpeechLLM):
    """Has the names of talkers, and no talkers."""

    run_names = NAMES  # type: ignore[assignment]


def stops_at(curves: dict[str, list[float]], patience: int, resume_at: int | None = None) -> int | None:
    """Give the validation at which a training with these curves stops, from 1."""
    stopping, module = EarlyStoppingOfAll(patience), Named.__new__(Named)
    for number in range(len(curves["ntp"])):
        if number == resume_at:
            state = stopping.state_dict()
            stopping = EarlyStoppingOfAll(patience)
            stopping.load_state_dict(state)
        metrics = {f"{name}/val/nll": torch.tensor(own[number]) for name, own in curves.items()}
        trainer: Any = SimpleNamespace(
            sanity_checking=False,
            state=SimpleNamespace(fn=TrainerFn.FITTING),
            callback_metrics=metrics,
            should_stop=False,
        )
        stopping.on_validation_end(cast(L.Trainer, trainer), module)
        if trainer.should_stop:
            return number + 1
    return None


def test_it_waits_for_the_last_that_improves() -> None:
    overfits, improves = [3.0, 2.0, 2.1, 2.2, 2.3, 2.4], [3.0, 2.9, 2.8, 2.7, 2.7, 2.8]
    assert stops_at({"ntp": overfits, "mdm": overfits}, 2) == 4
    assert stops_at({"ntp": overfits, "mdm": improves}, 2) == 6, "an equal value is no improvement"
    assert stops_at({"ntp": overfits, "mdm": improves}, 3) is None
    assert stops_at({"ntp": [float("nan")] * 6, "mdm": overfits}, 2) == 4, "what is no number is no improvement"


curve = st.lists(st.integers(0, 5).map(float), min_size=8, max_size=8)


@given(curve, curve, st.integers(1, 4), st.integers(0, 7))
def test_a_resumed_training_stops_where_it_would_have(
    ntp: list[float], mdm: list[float], patience: int, resume_at: int
) -> None:
    curves = {"ntp": ntp, "mdm": mdm}
    at = stops_at(curves, patience)
    assert stops_at(curves, patience, resume_at) == at
    if at is not None:
        for own in curves.values():
            assert min(own[: at - patience]) <= min(own[at - patience : at]), "none has improved since"


def test_a_fit_ends_early() -> None:
    llm = make_llm("ntp", learning_rate=1e-9)  # nothing improves, but for rounding
    every = {"val_check_interval": 1, "check_val_every_n_epoch": None}

    class Flat(EarlyStoppingOfAll):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.callback_metrics["ntp/val/nll"] = torch.tensor(1.0)
            super().on_validation_end(trainer, pl_module)

    trainer = fit(llm, 6, callbacks=[Flat(2)], **every)
    assert trainer.global_step == 3
    with pytest.raises(UserError, match="ntp has no val/wer; watch a metric"):
        fit(make_llm("ntp"), 2, callbacks=[EarlyStoppingOfAll(2, "val/wer")], **every)
    with pytest.raises(UserError, match="patience is 0"):
        EarlyStoppingOfAll(0)
