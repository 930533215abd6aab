"""The embedded speech tokenizer: a small convolutional autoencoder with one FSQ codebook at 25 Hz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric
from vector_quantize_pytorch import FSQ

from lightning_modules.acoustics.log_mel import SAMPLE_RATE, LogMel, zero_beyond
from lightning_modules.codec.mel_autoencoder import (
    ENCODER_REACH_TOKENS,
    FRAMES_PER_TOKEN,
    MAX_LOOKAHEAD_TOKENS,
    SAMPLES_PER_TOKEN,
    MelDecoder,
    TokenEncoder,
)
from lightning_modules.codec.objectives.rows import draw_rows
from lightning_modules.codec.objectives.shift_tolerance import ShiftTolerance
from lightning_modules.codec.objectives.text_reading import TextReading
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_within
from lightning_modules.talker.losses import LossTerm
from lightning_modules.token_format import TokenFormat
from lightning_modules.training.batch_fields import refuse_missing_replies
from lightning_modules.training.optimization import optimizer_with_warmup_cosine
from lightning_modules.training.optimizer_settings import check_optimizer_settings
from lightning_modules.training.reduction import mean_over_ranks
from lightning_modules.training.seeding import derive_generator

if TYPE_CHECKING:
    from datamodules.batch import SpokenBatch

CROP_MARGIN = SAMPLE_RATE // 5  # samples beyond both ends of a reply that crops may reach
TRAINING_ONLY = ("text_reading", "shift_tolerance")  # arguments that a codec in use does without


class SpeechCodec(L.LightningModule):
    """Speech to tokens and back to log-mel, trained to restore the log-mel of replies.

    Token t stands for samples ``640 t .. 640 t + 639``. It depends on 100 ms on each side of them (analysis window
    included), so that equal sounds get equal tokens wherever they are.

    Args:
        levels: Quantisation levels of the FSQ coordinates, whose product is the codebook size.
        channels: Widths at 100, 50 and 25 Hz.
        lookahead_tokens: Tokens after t that the mel frames of t may depend on.
        crop_s: Length of the random training crops in seconds; a multiple of 0.04.
        seed: Seed of the crops, which are a pure function of seed, global step and rank.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Steps of linear warm-up before the cosine decay.
        text_reading: Lets the codes tell the words of whole replies; None leaves them to the sound alone. It is there
            in training only: a codec that is loaded for use has none.
        shift_tolerance: Lets the codes of crops stay when these move by less than a token; None does not.

    Raises:
        UserError: If a constructor value is out of its range, or the reader expects other codes.

    Reference: Finite Scalar Quantization, arXiv 2309.15505.
    """

    sample_rate = SAMPLE_RATE
    frame_rate_hz = SAMPLE_RATE // SAMPLES_PER_TOKEN
    samples_per_token = SAMPLES_PER_TOKEN

    def __init__(
        self,
        levels: Sequence[int] = (8, 5, 5, 5),
        channels: Sequence[int] = (96, 160, 224),
        lookahead_tokens: int = 1,
        crop_s: float = 1.6,
        seed: int = 0,
        learning_rate: float = 6e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
        text_reading: TextReading | None = None,
        shift_tolerance: ShiftTolerance | None = None,
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise UserError(f"levels is {list(levels)}; give at least 3 levels to every FSQ coordinate")
        if len(channels) != 3 or min(channels) < 1:
            raise UserError(f"channels is {list(channels)}; give three positive widths, for 100, 50 and 25 Hz")
        require_within(0, MAX_LOOKAHEAD_TOKENS, lookahead_tokens=lookahead_tokens)
        require_at_least(1 / self.frame_rate_hz, crop_s=crop_s)
        check_optimizer_settings({"learning_rate": learning_rate}, weight_decay, warmup_steps, seed)
        self.crop_tokens = round(crop_s * self.frame_rate_hz)
        if abs(self.crop_tokens - crop_s * self.frame_rate_hz) > 1e-6:
            raise UserError(f"crop_s is {crop_s}; give a multiple of 0.04 s, a token")
        if text_reading is not None and text_reading.num_coordinates != len(levels):
            raise UserError(
                f"num_coordinates of text_reading is {text_reading.num_coordinates}; give {len(levels)}, one for each "
                f"of levels {list(levels)}"
            )
        self.levels, self.channels = tuple(levels), tuple(channels)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.seed = seed
        self.log_mel = LogMel()
        self.encoder = TokenEncoder(channels, len(levels))
        with torch.device("cpu"):  # FSQ reads its codebook size off a tensor, which the meta device does not allow
            self.quantizer = FSQ(list(levels))
        self.decoder = MelDecoder(channels, len(levels), lookahead_tokens)
        self.text_reading, self.shift_tolerance = text_reading, shift_tolerance
        # Lightning's own weighted means round the weights to whole numbers on several devices.
        self._mel_l1, self._codebook_share = MeanMetric(), MeanMetric()

    @property
    def codebook_size(self) -> int:
        """Number of distinct tokens; ids are 0 .. codebook_size - 1."""
        return int(self.quantizer.codebook_size)

    @property
    def token_format(self) -> TokenFormat:
        """Its tokens, as corpora and vocoders name them."""
        return TokenFormat("embedded", self.codebook_size, self.frame_rate_hz, self.sample_rate)

    @property
    def lookahead_tokens(self) -> int:
        """Tokens after t that the mel frames of t may depend on."""
        return self.decoder.lookahead_tokens

    @property
    def left_context_tokens(self) -> int:
        """Tokens before t that the mel frames of t may depend on."""
        return self.decoder.left_context_tokens

    def check_data(self, fields: Mapping[str, Sequence[str]]) -> None:
        """Refuse data without reply audio.

        Args:
            fields: Names of the fields that a batch holds, by split.

        Raises:
            UserError: If a split lacks it.
        """
        refuse_missing_replies(fields, "the codec learns")

    def token_lengths(self, lengths: Tensor) -> Tensor:
        """Tokens that cover the given numbers of samples: ceil(S / 640)."""
        return torch.div(lengths + SAMPLES_PER_TOKEN - 1, SAMPLES_PER_TOKEN, rounding_mode="floor")

    @torch.no_grad()
    def encode(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize speech.

        Args:
            waveform: ``(B, S) float``, 16 kHz.
            lengths: ``(B,) int64`` samples; None means that all rows are full.

        Returns:
            Tokens ``(B, ceil(S / 640)) int64``, 0 beyond each row's own number, and those numbers ``(B,) int64``.

        Raises:
            UserError: If the waveform is not ``(B, S)``, or a length exceeds it.
        """
        if waveform.dim() != 2:
            raise UserError(f"waveform must be (batch, samples), got shape {tuple(waveform.shape)}")
        if lengths is None:
            lengths = torch.full((waveform.shape[0],), waveform.shape[1], device=waveform.device)
        # Always in float32: a token must not depend on the precision of the caller.
        with torch.autocast(waveform.device.type, enabled=False):
            _, tokens = self._quantize_replies(zero_beyond(waveform, lengths))
        token_lengths = self.token_lengths(lengths.to(waveform.device))
        return zero_beyond(tokens, token_lengths), token_lengths

    def decode_mel(self, tokens: Tensor, token_lengths: Tensor | None = None) -> Tensor:
        """Decode tokens to log-mel.

        Args:
            tokens: ``(B, T) int``, 0 .. codebook_size - 1.
            token_lengths: ``(B,) int64``; None means that all rows are full. Tokens beyond are ignored.

        Returns:
            ``(B, 80, 4 T) float32``; frames beyond a row's own length mean nothing.

        Raises:
            UserError: If a token is outside the codebook.
        """
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.codebook_size:
            raise UserError(
                f"tokens must lie in 0..{self.codebook_size - 1}, got {int(tokens.min())}..{int(tokens.max())}; "
                "strip BOS, EOS and other special tokens before decoding"
            )
        codes = self.quantizer.indices_to_codes(tokens)
        if token_lengths is not None:
            codes = zero_beyond(codes, token_lengths)
        with torch.autocast(tokens.device.type, enabled=False):
            return self.decoder(codes.transpose(1, 2).float())

    def _quantize(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize log-mel ``(B, 80, 4 (T + 2 R))`` with margins of R = 2 tokens to codes ``(B, T, D)`` and tokens."""
        reach = ENCODER_REACH_TOKENS
        codes, tokens = self.quantizer(self.encoder(log_mel)[:, :, reach:-reach].transpose(1, 2).float())
        return codes, tokens.long()

    def _quantize_replies(self, reply: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize whole replies ``(B, S)``, silent beyond their ends, to codes and tokens of ceil(S / 640)."""
        margin = ENCODER_REACH_TOKENS * SAMPLES_PER_TOKEN
        return self._quantize(self.log_mel(F.pad(reply, (margin, margin + -reply.shape[1] % SAMPLES_PER_TOKEN))))

    def _generator(self, *purpose: str) -> torch.Generator:
        return derive_generator("cpu", self.seed, *purpose, self.global_step, self.global_rank)

    def _crop_starts(self, lengths: Tensor) -> Tensor:
        """Draw where each crop begins, in samples counted from 0.2 s before its row; it may end 0.2 s after the row."""
        share = torch.rand(len(lengths), generator=self._generator())
        room = (lengths.cpu() + 2 * CROP_MARGIN - self._crop_samples).clamp(min=0)
        return (share * (room + 1)).long()

    @property
    def _crop_samples(self) -> int:
        return (self.crop_tokens + 2 * ENCODER_REACH_TOKENS) * SAMPLES_PER_TOKEN

    def _crops(self, reply: Tensor, starts: Tensor) -> Tensor:
        """Cut one crop with margins out of each row of ``(B, S)``."""
        padded = F.pad(reply, (CROP_MARGIN, self._crop_samples + CROP_MARGIN))
        places = starts.to(reply.device)[:, None] + torch.arange(self._crop_samples, device=reply.device)
        return padded.gather(1, places.clamp(0, padded.shape[1] - 1))

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        """Compute the L1 between the log-mel of random reply crops and their restoration, and the other objectives."""
        reply, lengths = self._replies(batch)
        reply = zero_beyond(reply, lengths)
        starts = self._crop_starts(lengths)
        log_mel = self.log_mel(self._crops(reply, starts))
        codes, _ = self._quantize(log_mel)
        margin = ENCODER_REACH_TOKENS * FRAMES_PER_TOKEN
        l1 = F.l1_loss(self.decoder(codes.transpose(1, 2)).float(), log_mel[:, :, margin:-margin])
        self.log("train/loss", l1, prog_bar=True)
        terms = [LossTerm(l1, torch.tensor(len(lengths)))]
        if self.text_reading is not None:
            terms.append(self._text_term(self.text_reading, reply, lengths, batch.reply_texts))
        if self.shift_tolerance is not None and self.shift_tolerance.ramp.at(self.global_step):
            terms.append(self._shift_term(self.shift_tolerance, reply, starts, codes))
        return mean_over_ranks(terms, self.trainer.world_size)

    def _text_term(self, reading: TextReading, reply: Tensor, lengths: Tensor, texts: Sequence[str]) -> LossTerm:
        """Let the codes of whole replies be read, from a random phase of the token grid on."""
        generator = self._generator("text")
        rows = draw_rows(len(lengths), reading.max_rows, generator)
        phase = int(torch.randint(SAMPLES_PER_TOKEN, (), generator=generator))
        codes, _ = self._quantize_replies(F.pad(reply[rows], (phase, 0)))
        numbers = self.token_lengths(lengths[rows] + phase)
        term = reading(codes, numbers, [texts[row] for row in rows], self.global_step)
        self.log("train/text_reading", term.mean)
        return term

    def _shift_term(self, tolerance: ShiftTolerance, reply: Tensor, starts: Tensor, codes: Tensor) -> LossTerm:
        """Compare the codes of crops with those of the same crops a little earlier or later."""
        generator = self._generator("shift")
        rows = draw_rows(len(starts), tolerance.max_rows, generator)
        shifts = tolerance.draw_shifts(len(rows), SAMPLE_RATE, generator)
        moved, _ = self._quantize(self.log_mel(self._crops(reply[rows], starts[rows] + shifts)))
        term = tolerance(codes[rows], moved, self.global_step)
        self.log("train/shift_tolerance", term.mean)
        return term

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        """Log the L1 over whole replies, all tokens of all devices alike, and the share of the codebook in use."""
        reply, lengths = self._replies(batch)
        reply = zero_beyond(reply, lengths)
        tokens, token_lengths = self.encode(reply, lengths)
        log_mel = self.log_mel(F.pad(reply, (0, -reply.shape[1] % SAMPLES_PER_TOKEN)))
        error = (self.decode_mel(tokens, token_lengths) - log_mel).abs().mean(1)
        is_inside = torch.arange(error.shape[1], device=error.device) < FRAMES_PER_TOKEN * token_lengths[:, None]
        self._mel_l1.update(error[is_inside].mean(), token_lengths.sum())
        self.log("val/mel_l1", self._mel_l1, prog_bar=True)
        spoken = tokens[is_inside[:, ::FRAMES_PER_TOKEN]]
        self._codebook_share.update(len(spoken.unique()) / self.codebook_size, len(lengths))
        self.log("val/codebook_share", self._codebook_share)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Outside a training, drop what reads the codes, so that users of the codec neither hold nor export it."""
        if self._trainer is None and self.text_reading is not None:
            self.text_reading = None
            weights = checkpoint["state_dict"]
            for name in [name for name in weights if name.startswith("text_reading.")]:
                del weights[name]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make AdamW with warm-up and cosine decay to the trainer's last step."""
        return optimizer_with_warmup_cosine(self, [(self, self.learning_rate)], self.weight_decay, self.warmup_steps)

    @staticmethod
    def _replies(batch: SpokenBatch) -> tuple[Tensor, Tensor]:
        if batch.reply is None or batch.reply_lengths is None:
            raise UserError(
                "the codec learns from reply audio, which this batch lacks; add 'reply' to the data module's fields"
            )
        return batch.reply, batch.reply_lengths
