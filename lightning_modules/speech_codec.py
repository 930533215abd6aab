"""The embedded speech tokenizer: a small convolutional autoencoder with one FSQ codebook at 25 Hz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from vector_quantize_pytorch import FSQ

from lightning_modules.acoustics.conv_blocks import CausalConv, ResidualConv, Upsample
from lightning_modules.acoustics.log_mel import HOP_SAMPLES, NUM_MELS, SAMPLE_RATE, LogMel, zero_beyond
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_within
from lightning_modules.token_format import TokenFormat
from lightning_modules.training.batch_fields import refuse_missing_replies
from lightning_modules.training.optimization import optimizer_with_warmup_cosine
from lightning_modules.training.optimizer_settings import check_optimizer_settings
from lightning_modules.training.seeding import derive_generator

if TYPE_CHECKING:
    from datamodules.batch import SpokenBatch

FRAMES_PER_TOKEN = 4
SAMPLES_PER_TOKEN = FRAMES_PER_TOKEN * HOP_SAMPLES
ENCODER_REACH_TOKENS = 2
MAX_LOOKAHEAD_TOKENS = 6  # what the decoder's convolutions can see


class TokenEncoder(nn.Module):
    """Log-mel at 100 Hz to FSQ coordinates at 25 Hz, each of which sees 8 frames (80 ms) on each side of its token."""

    def __init__(self, channels: Sequence[int], num_coordinates: int) -> None:
        super().__init__()
        full, half, quarter = channels
        self.layers = nn.Sequential(
            nn.Conv1d(NUM_MELS, full, 5, padding=2),
            ResidualConv(full, 3),
            nn.GELU(),
            nn.Conv1d(full, half, 4, stride=2, padding=1),
            ResidualConv(half, 3),
            nn.GELU(),
            nn.Conv1d(half, quarter, 4, stride=2, padding=1),
            ResidualConv(quarter, 1),
            nn.GELU(),
            nn.Conv1d(quarter, num_coordinates, 1),
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """Map ``(B, 80, 4 T)`` to ``(B, D, T)``."""
        return self.layers(log_mel)


class MelDecoder(nn.Module):
    """FSQ coordinates at 25 Hz to log-mel at 100 Hz: a causal stack that runs ``lookahead_tokens`` behind its input."""

    def __init__(self, channels: Sequence[int], num_coordinates: int, lookahead_tokens: int) -> None:
        super().__init__()
        full, half, quarter = channels
        self.lookahead_tokens = lookahead_tokens
        self.layers = nn.Sequential(
            CausalConv(num_coordinates, quarter, 3),
            ResidualConv(quarter, 3, causal=True),
            ResidualConv(quarter, 3, causal=True),
            nn.GELU(),
            Upsample(quarter, half, 2),
            ResidualConv(half, 3, causal=True),
            nn.GELU(),
            Upsample(half, full, 2),
            ResidualConv(full, 3, causal=True),
            ResidualConv(full, 3, causal=True),
            nn.GELU(),
            CausalConv(full, NUM_MELS, 3),
        )

    @property
    def left_context_tokens(self) -> int:
        """Earlier tokens that a frame of token t may depend on (24 + 4 + 6 frames, rounded up)."""
        return 9 - self.lookahead_tokens

    def forward(self, coordinates: Tensor) -> Tensor:
        """Map ``(B, D, T)`` to ``(B, 80, 4 T)``."""
        delay = self.lookahead_tokens
        return self.layers(F.pad(coordinates, (0, delay)))[:, :, delay * FRAMES_PER_TOKEN :]


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

    Raises:
        UserError: If a constructor value is out of its range.

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
        margin = ENCODER_REACH_TOKENS * SAMPLES_PER_TOKEN
        tail = -waveform.shape[1] % SAMPLES_PER_TOKEN
        heard = F.pad(zero_beyond(waveform, lengths), (margin, margin + tail))
        # Always in float32: a token must not depend on the precision of the caller.
        with torch.autocast(waveform.device.type, enabled=False):
            _, tokens = self._quantize(self.log_mel(heard))
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

    def _crops(self, reply: Tensor, lengths: Tensor) -> Tensor:
        """Draw one crop with margins from each row of ``(B, S)``; it may reach 0.2 s beyond both ends of the row."""
        size = (self.crop_tokens + 2 * ENCODER_REACH_TOKENS) * SAMPLES_PER_TOKEN
        margin = SAMPLE_RATE // 5
        generator = derive_generator("cpu", self.seed, self.global_step, self.global_rank)
        share = torch.rand(len(lengths), generator=generator)
        room = (lengths.cpu() + 2 * margin - size).clamp(min=0)
        starts = (share * (room + 1)).long().to(reply.device)
        padded = F.pad(reply, (margin, size + margin))
        return padded.gather(1, starts[:, None] + torch.arange(size, device=reply.device))

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        """Compute the L1 between the log-mel of random reply crops and their restoration."""
        reply, lengths = self._replies(batch)
        log_mel = self.log_mel(self._crops(zero_beyond(reply, lengths), lengths))
        codes, _ = self._quantize(log_mel)
        margin = ENCODER_REACH_TOKENS * FRAMES_PER_TOKEN
        loss = F.l1_loss(self.decoder(codes.transpose(1, 2)).float(), log_mel[:, :, margin:-margin])
        self.log("train/loss", loss, prog_bar=True)
        return loss

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
