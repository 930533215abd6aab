"""Codec and recognizer on two devices: what is validated is all devices' data, and the loss weighs characters."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.acoustics.conv_speech_encoder import ConvSpeechEncoder
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.speech_recognizer import SpeechRecognizer
from tests.two_ranks import make_trainer, on_two_ranks

TEXTS = ["a", "it is a long text", "go home", "no"]
HEARD = ["b", "it is a long text", "go away", "no"]


def rows(first: int, last: int) -> SpokenBatch:
    """Give rows of four examples, whose halves last 0.4 s and 1.9 s."""
    lengths = torch.tensor([1_900, 4_500, 16_000, 14_400])
    reply = 0.2 * torch.randn(4, 16_000, generator=torch.Generator().manual_seed(0))
    reply *= torch.tensor([0.1, 0.1, 1.0, 1.0])[:, None]
    part = slice(first, last)
    longest = int(lengths[part].max())
    return SpokenBatch(list("abcd")[part], TEXTS[part], reply=reply[part, :longest], reply_lengths=lengths[part])


class Mishearing(SpeechRecognizer):
    """Hears a fixed text in each row, by its reply."""

    def _greedy(self, log_probs: Tensor, frame_lengths: Tensor) -> list[str]:
        return [HEARD[TEXTS.index(text)] for text in self.texts]

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        self.texts = batch.reply_texts
        super().validation_step(batch, batch_idx)


def observe(num_ranks: int, first: int, last: int) -> dict[str, Any]:
    """Give the metrics of both modules on some rows, and the gradients of the recognizer's first step."""
    torch.manual_seed(0)
    codec, recognizer = SpeechCodec(channels=(8, 8, 8)), Mishearing(ConvSpeechEncoder(16, dilations=(1,)))
    loader = DataLoader([rows(first, last)], batch_size=None)
    metrics: dict[str, float] = {}
    for module in (codec, recognizer):
        trainer = make_trainer(num_ranks)
        trainer.validate(module, loader, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    gradients: dict[str, Tensor] = {}
    recognizer.on_after_backward = lambda: gradients.update(  # type: ignore[method-assign]
        {name: one.grad.clone() for name, one in recognizer.named_parameters() if one.grad is not None}
    )
    make_trainer(num_ranks, max_steps=1, limit_val_batches=0).fit(recognizer, loader)
    return {"metrics": metrics, "gradients": gradients}


def observe_half(rank: int) -> dict[str, Any]:
    return observe(2, 2 * rank, 2 * rank + 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_two_ranks_on_half_batches_see_what_one_sees_in_the_whole() -> None:
    whole = observe(1, 0, 4)
    assert whole["metrics"]["val/wer"] == pytest.approx(2 / 9)
    assert whole["metrics"]["val/wer_macro"] == pytest.approx(1.5 / 4)
    assert whole["gradients"]
    of_first_half = observe(1, 0, 2)["metrics"]
    for half in on_two_ranks(observe_half):
        for name in ("val/mel_l1", "val/loss", "val/wer", "val/wer_macro"):
            assert half["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-5), name
            assert of_first_half[name] != pytest.approx(whole["metrics"][name], rel=1e-2), f"{name} needs both halves"
        for name, expected in whole["gradients"].items():
            torch.testing.assert_close(half["gradients"][name], expected, rtol=1e-4, atol=1e-5)
