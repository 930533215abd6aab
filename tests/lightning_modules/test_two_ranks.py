"""Two devices on half batches learn what one learns from the whole, and count what any of them has seen."""

from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.self_distillation_rounds import SelfDistillationRounds
from datamodules.batch import SpokenBatch
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masking.schemes import BlockBernoulli
from lightning_modules.thinker.objective import ThinkerObjective
from tests.lightning_modules.test_speech_llm import make_batch, make_llm
from tests.two_ranks import make_trainer, on_two_ranks

KINDS = ("ntp", "mtp", "mdm", "set_block")


class Gradients(L.Callback):
    """Keeps the gradients of the first step, as the optimizer would see them before clipping."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        named = pl_module.named_parameters()
        self.found = {name: one.grad.clone() for name, one in named if one.grad is not None}


def uneven_batch(seed: int = 0) -> SpokenBatch:
    """Four examples whose halves hold very different numbers of tokens."""
    generator = torch.Generator().manual_seed(seed)
    return replace(
        make_batch(0),
        ids=["a", "b", "c", "d"],
        reply_texts=["Yes.", "I will not do that today.", "Paris", "No."],
        transcripts=["a", "b", "a", "b"],
        query=0.1 * torch.randn(4, 8000, generator=generator),
        query_lengths=torch.tensor([8000, 6000, 7000, 8000]),
        units=torch.randint(0, 30, (4, 40), generator=generator),
        unit_lengths=torch.tensor([40, 33, 5, 7]),
    )


def half_of(batch: SpokenBatch, rank: int) -> SpokenBatch:
    rows = [2 * rank, 2 * rank + 1]
    tensors = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    names = "ids", "reply_texts", "transcripts"
    return replace(batch, **tensors, **{name: [getattr(batch, name)[row] for row in rows] for name in names})


def gradients(num_ranks: int, batch: SpokenBatch, trains_thinker: bool) -> dict[str, Tensor]:
    settings = {"thinker_objective": ThinkerObjective(1.0, 0.3, 0.5)} if trains_thinker else {}
    llm = make_llm(*(() if trains_thinker else KINDS), **settings)
    llm.train()
    callbacks: list[Any] = [Gradients()]
    for name, talker in llm.talkers.items():
        if isinstance(talker, MaskedTalker):  # all masked: no draw differs between one device and two
            talker.masking = talker.evaluation_masking = BlockBernoulli(1.0, 1.0)
            callbacks.append(SelfDistillationRounds([name], [{"alpha": 0.5, "certainty_weight": 0.5}]))
    trainer = make_trainer(num_ranks, max_steps=1, callbacks=callbacks, limit_val_batches=0)
    trainer.fit(llm, DataLoader([batch], batch_size=None))
    return callbacks[0].found


def gradients_of_a_half(rank: int, trains_thinker: bool) -> dict[str, Tensor]:
    return gradients(2, half_of(uneven_batch(), rank), trains_thinker)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:The replies", "ignore:.*transcripts have")
@pytest.mark.parametrize("trains_thinker", [False, True])
def test_gradients_of_two_ranks_on_half_batches_equal_one_rank_on_the_whole(trains_thinker: bool) -> None:
    whole = gradients(1, uneven_batch(), trains_thinker)
    first, second = on_two_ranks(gradients_of_a_half, trains_thinker)
    assert first.keys() == second.keys() == whole.keys() and whole
    for name, expected in whole.items():
        torch.testing.assert_close(
            first[name], expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)


def validate_a_half(rank: int) -> tuple[dict[str, float], list[str], dict[str, Any]]:
    batch = half_of(uneven_batch(), rank)
    batch.reply_texts = [f"{text} and so on, and on, and on it goes" for text in batch.reply_texts]
    llm = make_llm(*KINDS)
    trainer = make_trainer(2)
    trainer.validate(llm, DataLoader([batch], batch_size=None), verbose=False)
    checkpoint: dict[str, Any] = {"state_dict": llm.state_dict()}
    llm.on_save_checkpoint(checkpoint)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return metrics, sorted(llm.text_overflow.ids), checkpoint["ids_with_text_overflow"]


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:The replies")
def test_validation_and_text_overflow_are_of_all_ranks() -> None:
    batch = uneven_batch()
    batch.reply_texts = [f"{text} and so on, and on, and on it goes" for text in batch.reply_texts]
    llm: SpeechLLM = make_llm(*KINDS)
    trainer = make_trainer(1)
    trainer.validate(llm, DataLoader([batch], batch_size=None), verbose=False)
    expected = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert expected["num_text_overflow"] == len(llm.text_overflow.ids) >= 2
    for metrics, overflow, saved in on_two_ranks(validate_a_half):
        assert metrics == pytest.approx(expected, rel=1e-5)
        assert overflow == saved == sorted(llm.text_overflow.ids)
