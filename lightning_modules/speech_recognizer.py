"""The embedded speech recognizer: a CTC model from waveforms to characters, which judges word errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_modules.acoustics.character_loss import character_loss
from lightning_modules.acoustics.log_mel import SAMPLE_RATE
from lightning_modules.errors import UserError
from lightning_modules.evaluation.text_normalization import ALPHABET, normalize_text
from lightning_modules.evaluation.word_error_rate import word_error_rates
from lightning_modules.talker.losses import LossTerm
from lightning_modules.thinker.transcription import best_transcripts
from lightning_modules.training.optimization import optimizer_with_warmup_cosine
from lightning_modules.training.optimizer_settings import check_optimizer_settings
from lightning_modules.training.reduction import gather_over_ranks, mean_over_ranks
from lightning_modules.training.seeding import derive_generator

if TYPE_CHECKING:
    from datamodules.batch import SpokenBatch


class SpeechRecognizer(L.LightningModule):
    """Characters from waveforms, by connectionist temporal classification with greedy decoding (no language model).

    Args:
        encoder: Maps waveforms ``(B, S)`` and lengths ``(B,)`` to frames ``(B, F, D)`` and lengths ``(B,)``; its
            ``output_size`` is D.
        augmentation: Maps a waveform ``(B, S)`` and a generator to ``(B, S)`` in training; None for none.
        source: Speech that it learns from: "reply" (reply audio, reply text) or "query" (query audio, transcript).
        characters: Characters of normalised text, without the blank.
        seed: Seed of the augmentation, which is a pure function of seed, global step and rank.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Steps of linear warm-up before the cosine decay.

    Attributes:
        sample_rate: Samples per second of the speech that it takes.

    Raises:
        UserError: If ``source`` or ``characters`` cannot be used, or a number is out of range.

    Reference: Connectionist Temporal Classification, ICML 2006.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        encoder: nn.Module,
        augmentation: nn.Module | None = None,
        source: Literal["reply", "query"] = "reply",
        characters: str = ALPHABET,
        seed: int = 0,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
    ) -> None:
        super().__init__()
        if source not in ("reply", "query"):
            raise UserError(f"source is {source!r}; choose 'reply' or 'query'")
        if not characters or len(set(characters)) != len(characters):
            raise UserError(f"characters is {characters!r}; give at least one, each once")
        check_optimizer_settings({"learning_rate": learning_rate}, weight_decay, warmup_steps, seed)
        self.encoder = encoder
        self.augmentation = augmentation
        self.source = source
        self.characters = characters
        self.seed = seed
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.head = nn.Linear(int(encoder.output_size), 1 + len(characters))  # type: ignore[arg-type]
        self._ids = {character: index + 1 for index, character in enumerate(characters)}
        self._heard: list[tuple[str, str]] = []
        self._val_loss = MeanMetric()

    def check_data(self, fields: Mapping[str, Sequence[str]]) -> None:
        """Refuse data without the configured source.

        Args:
            fields: Names of the fields that a batch holds, by split.

        Raises:
            UserError: If a split lacks one that is needed.
        """
        needed = ("reply",) if self.source == "reply" else ("query", "transcript")
        for split, names in fields.items():
            missing = [name for name in needed if name not in names]
            if missing:
                raise UserError(
                    f"source {self.source!r} needs {missing}, which {split} batches lack; "
                    "add them to the data module's fields"
                )

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the log-probabilities of characters over time.

        Args:
            waveform: ``(B, S) float``, 16 kHz.
            lengths: ``(B,) int64`` samples.

        Returns:
            ``(B, F, 1 + characters) float32``, blank first, and the frames of each row ``(B,) int64``.
        """
        frames, frame_lengths = self.encoder(waveform, lengths)
        return self.head(frames).float().log_softmax(-1), frame_lengths

    def encode_text(self, text: str) -> list[int]:
        """Turn a text into character ids, normalised first.

        Raises:
            UserError: If the normalised text holds a character that this recognizer does not know.
        """
        normal = normalize_text(text)
        unknown = sorted(set(normal) - set(self._ids))
        if unknown:
            raise UserError(f"characters {unknown} of {text!r} are unknown to this recognizer; extend `characters`")
        return [self._ids[character] for character in normal]

    @torch.no_grad()
    def transcribe(self, waveforms: Tensor | Sequence[Tensor], lengths: Tensor | None = None) -> list[str]:
        """Transcribe waveforms.

        Args:
            waveforms: ``(B, S) float`` at ``sample_rate``, or a list of B waveforms ``(S_b,)``; empty rows give "".
            lengths: ``(B,) int64`` samples of the rows of a ``(B, S)`` tensor; None means that all are full.

        Returns:
            B normalised texts.

        Raises:
            UserError: If the waveforms are neither ``(B, S)`` nor a list of ``(S_b,)``.
        """
        if not isinstance(waveforms, Tensor):
            if any(waveform.dim() != 1 for waveform in waveforms):
                raise UserError("a list of waveforms must hold rows (samples,), one per utterance")
            lengths = torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.long)
            rows = [torch.zeros(0), *waveforms]
            waveforms = nn.utils.rnn.pad_sequence(rows, batch_first=True)[1:]
        if waveforms.dim() != 2:
            raise UserError(f"waveforms must be (batch, samples), got shape {tuple(waveforms.shape)}")
        if lengths is None:
            lengths = torch.full((len(waveforms),), waveforms.shape[1])
        device = self.head.weight.device
        texts = [""] * len(lengths)
        audible = lengths.to(device).nonzero()[:, 0]
        if len(audible):
            with torch.autocast(device.type, enabled=False):
                log_probs, frame_lengths = self(waveforms.to(device)[audible], lengths.to(device)[audible])
            for row, text in zip(audible.tolist(), self._greedy(log_probs, frame_lengths), strict=True):
                texts[row] = text
        return texts

    def _greedy(self, log_probs: Tensor, frame_lengths: Tensor) -> list[str]:
        """Decode the best path: merge repeats, drop blanks."""
        rows = best_transcripts(log_probs, frame_lengths, blank_id=0)
        return [normalize_text("".join(self.characters[index - 1] for index in row)) for row in rows]

    def _loss(self, log_probs: Tensor, frame_lengths: Tensor, texts: Sequence[str]) -> LossTerm:
        """Compute the CTC loss in nats per character; a row whose text does not fit into its frames counts as 0."""
        return LossTerm(*character_loss(log_probs, frame_lengths, [self.encode_text(text) for text in texts]))

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        """Compute the CTC loss on augmented speech."""
        waveform, lengths, texts = self._pairs(batch)
        if self.augmentation is not None:
            generator = derive_generator(waveform.device, self.seed, self.global_step, self.global_rank)
            waveform = self.augmentation(waveform, generator)
        log_probs, frame_lengths = self(waveform, lengths)
        term = self._loss(log_probs, frame_lengths, texts)
        self.log("train/loss", term.mean, prog_bar=True, batch_size=len(texts))
        return mean_over_ranks([term], self.trainer.world_size)

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        """Log the loss and collect the transcripts."""
        waveform, lengths, texts = self._pairs(batch)
        log_probs, frame_lengths = self(waveform, lengths)
        term = self._loss(log_probs, frame_lengths, texts)
        self._val_loss.update(term.mean, term.count)
        self.log("val/loss", self._val_loss)
        self._heard += zip(texts, self._greedy(log_probs, frame_lengths), strict=True)

    def on_validation_epoch_end(self) -> None:
        """Log the word error rates over the validation utterances of all devices."""
        gathered = gather_over_ranks(self._heard, self.trainer.world_size)
        self._heard = []
        pairs = [pair for heard in gathered for pair in heard]
        if pairs:  # the same on every device, so that their mean is the rate itself
            rates = word_error_rates(*zip(*pairs, strict=True))
            self.log("val/wer", rates.micro, prog_bar=True, sync_dist=True)
            self.log("val/wer_macro", rates.macro, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make AdamW with warm-up and cosine decay to the trainer's last step."""
        return optimizer_with_warmup_cosine(self, [(self, self.learning_rate)], self.weight_decay, self.warmup_steps)

    def _pairs(self, batch: SpokenBatch) -> tuple[Tensor, Tensor, Sequence[str]]:
        """Take waveform, lengths and texts of the configured source from a batch."""
        texts: Sequence[str] | None = batch.reply_texts
        waveform, lengths, needs = batch.reply, batch.reply_lengths, "'reply'"
        if self.source == "query":
            texts = batch.transcripts
            waveform, lengths, needs = batch.query, batch.query_lengths, "'query' and 'transcript'"
        if waveform is None or lengths is None or texts is None:
            raise UserError(
                f"source {self.source!r} needs {needs}, which this batch lacks; add them to the data module's fields"
            )
        return waveform, lengths, texts
