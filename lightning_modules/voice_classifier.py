"""A small classifier that hears which of several voices speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_modules.acoustics.log_mel import SAMPLE_RATE, zero_beyond
from lightning_modules.errors import UserError
from lightning_modules.talker.losses import LossTerm
from lightning_modules.training.batch_fields import refuse_missing_replies
from lightning_modules.training.optimization import optimizer_with_warmup_cosine
from lightning_modules.training.optimizer_settings import check_optimizer_settings
from lightning_modules.training.reduction import gather_over_ranks, mean_over_ranks
from lightning_modules.training.seeding import derive_generator

if TYPE_CHECKING:
    from datamodules.batch import SpokenBatch

LOUDNESS = 0.1  # root mean square that every utterance is brought to


class VoiceClassifier(L.LightningModule):
    """Tells voices apart by the mean over time of convolutional frames; trained on the replies of one corpus per voice.

    So that it hears the voice and nothing else, every utterance is brought to one loudness, and the corpora should hold
    the same texts; a frame of the encoder should reach less far than a word.

    Args:
        voices: Names of the voices, which are those of the corpora that the data module reads.
        encoder: Maps waveforms ``(B, S)`` and lengths ``(B,)`` to frames ``(B, F, D)`` and lengths ``(B,)``; its
            ``output_size`` is D.
        augmentation: Maps a waveform ``(B, S)`` and a generator to ``(B, S)`` in training; None for none.
        seed: Seed of the augmentation, which is a pure function of seed, global step and rank.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Steps of linear warm-up before the cosine decay.

    Attributes:
        sample_rate: Samples per second of the speech that it takes.

    Raises:
        UserError: If there are not at least two different voices, or a number is out of range.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        voices: Sequence[str],
        encoder: nn.Module,
        augmentation: nn.Module | None = None,
        seed: int = 0,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
    ) -> None:
        super().__init__()
        if len(set(voices)) != len(voices) or len(voices) < 2:
            raise UserError(f"voices is {list(voices)}; name at least two, each once")
        check_optimizer_settings({"learning_rate": learning_rate}, weight_decay, warmup_steps, seed)
        self.voices = tuple(voices)
        self.encoder = encoder
        self.augmentation = augmentation
        self.seed = seed
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.head = nn.Linear(int(encoder.output_size), len(voices))  # type: ignore[arg-type]
        self._val_loss = MeanMetric()
        self._judged: list[tuple[int, int]] = []

    def check_data(self, fields: Mapping[str, Sequence[str]]) -> None:
        """Refuse data without reply audio.

        Args:
            fields: Names of the fields that a batch holds, by split.

        Raises:
            UserError: If a split lacks it.
        """
        refuse_missing_replies(fields, "voices are learned")

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Compute the logits of the voices.

        Args:
            waveform: ``(B, S) float``, 16 kHz; what lies beyond a row's length is ignored.
            lengths: ``(B,) int64`` samples, at least 1.

        Returns:
            ``(B, V) float32``, in the order of ``voices``.
        """
        waveform = zero_beyond(waveform.float(), lengths)
        level = (waveform.square().sum(1) / lengths.to(waveform.device)).sqrt().clamp(min=1e-5)
        frames, frame_lengths = self.encoder(waveform * (LOUDNESS / level)[:, None], lengths)
        mean = zero_beyond(frames.float(), frame_lengths).sum(1) / frame_lengths[:, None]
        return self.head(mean).float()

    @torch.no_grad()
    def classify(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Name the voice of each waveform.

        Args:
            waveforms: B waveforms ``(S_b,) float`` at ``sample_rate``.

        Returns:
            B names; "" for a waveform without samples.
        """
        named = [""] * len(waveforms)
        audible = [row for row, waveform in enumerate(waveforms) if len(waveform)]
        if audible:
            device = self.head.weight.device
            rows = [waveforms[row].to(device) for row in audible]
            lengths = torch.tensor([len(row) for row in rows], device=device)
            with torch.autocast(device.type, enabled=False):
                logits = self(nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths)
            for row, best in zip(audible, logits.argmax(-1).tolist(), strict=True):
                named[row] = self.voices[best]
        return named

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        """Compute the cross-entropy on augmented replies."""
        reply, lengths, labels = self._labelled(batch)
        if self.augmentation is not None:
            generator = derive_generator(reply.device, self.seed, self.global_step, self.global_rank)
            reply = self.augmentation(reply, generator)
        loss = F.cross_entropy(self(reply, lengths), labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return mean_over_ranks([LossTerm(loss, torch.tensor(len(batch)))], self.trainer.world_size)

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        """Log the loss and collect the voices."""
        reply, lengths, labels = self._labelled(batch)
        logits = self(reply, lengths)
        self._val_loss.update(F.cross_entropy(logits, labels), len(batch))
        self.log("val/loss", self._val_loss)
        self._judged += zip(labels.tolist(), logits.argmax(-1).tolist(), strict=True)

    def on_validation_epoch_end(self) -> None:
        """Log the share of utterances of all devices whose voice was named rightly, over all and for each voice."""
        gathered = gather_over_ranks(self._judged, self.trainer.world_size)
        self._judged = []
        judged = [pair for part in gathered for pair in part]
        rights = {voice: [i == j for i, j in judged if i == index] for index, voice in enumerate(self.voices)}
        rights = {f"_{voice}": right for voice, right in rights.items()} | {"": [i == j for i, j in judged]}
        for name, right in rights.items():
            if right:  # the same on every device, so that their mean is the share itself
                self.log(f"val/accuracy{name}", sum(right) / len(right), prog_bar=not name, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make AdamW with warm-up and cosine decay to the trainer's last step."""
        return optimizer_with_warmup_cosine(self, [(self, self.learning_rate)], self.weight_decay, self.warmup_steps)

    def _labelled(self, batch: SpokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Take replies ``(B, S)``, their lengths and the numbers of their voices ``(B,) int64`` from a batch."""
        if batch.reply is None or batch.reply_lengths is None:
            raise UserError("voices are learned from reply audio, which this batch lacks; add 'reply' to fields")
        corpora = batch.corpora or [""] * len(batch)
        odd = sorted(set(corpora) - set(self.voices))
        if odd:
            raise UserError(
                f"replies of the corpora {odd} have none of the voices {list(self.voices)}; give the data module a "
                "root for each voice, by its name"
            )
        labels = torch.tensor([self.voices.index(corpus) for corpus in corpora], device=batch.reply.device)
        return batch.reply, batch.reply_lengths, labels
