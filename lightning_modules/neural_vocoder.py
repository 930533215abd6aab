"""Trains a network from a codec's mel to sound: the embedded voice without Griffin-Lim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric

from lightning_modules.acoustics.log_mel import SILENCE
from lightning_modules.acoustics.spectral_losses import MultiResolutionStftLoss
from lightning_modules.acoustics.vocos import Vocos
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.training.checkpoints import leave_frozen_out, refuse_unfit
from lightning_modules.training.optimization import optimizer_with_warmup_cosine
from lightning_modules.training.optimizer_settings import check_optimizer_settings
from lightning_modules.training.seeding import derive_generator

if TYPE_CHECKING:
    from datamodules.batch import SpokenBatch

MARGIN_FRAMES = 20  # by which a crop may reach beyond both ends of its reply


class NeuralVocoder(L.LightningModule):
    """A network that turns what a trained codec makes of speech tokens into sound, trained on the original replies.

    It learns on random crops, by the L1 of log-mel and the distance of short-time magnitudes at several resolutions.
    Its input is the mel that the codec *decodes from tokens*, as in use, so that it also learns to sharpen it.

    Args:
        network: The network that trains.
        codec: The trained codec of the tokens; it is frozen.
        mel_weight: Weight of the L1 of the normalised log-mel against the distance of magnitudes.
        window_samples: Windows of that distance.
        crop_s: Length of the random training crops in seconds; a multiple of 0.01, no shorter than the longest window.
        seed: Seed of the crops, which are a pure function of seed, global step and rank.
        learning_rate: Peak learning rate of Muon (matrices of hidden layers) and AdamW (all else).
        weight_decay: Weight decay of both.
        warmup_steps: Steps of linear warm-up before the cosine decay.

    Raises:
        UserError: If a constructor value is out of its range.

    Reference: Vocos, arXiv 2306.00814, without its adversarial losses; Parallel WaveGAN, arXiv 1910.11480, eq. 4.
    """

    def __init__(
        self,
        network: Vocos,
        codec: SpeechCodec,
        mel_weight: float = 3.0,
        window_samples: Sequence[int] = (256, 512, 1024),
        crop_s: float = 0.64,
        seed: int = 0,
        learning_rate: float = 4e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
    ) -> None:
        super().__init__()
        require_at_least(0, mel_weight=mel_weight)
        check_optimizer_settings({"learning_rate": learning_rate}, weight_decay, warmup_steps, seed)
        self.stft_loss = MultiResolutionStftLoss(window_samples)
        frame_s = network.hop_samples / codec.sample_rate
        require_at_least(max(window_samples) / codec.sample_rate, crop_s=crop_s)
        self.crop_frames = round(crop_s / frame_s)
        if abs(self.crop_frames * frame_s - crop_s) > 1e-6:
            raise UserError(f"crop_s is {crop_s}; give a multiple of {frame_s:g} s, a frame")
        self.network = network
        self.codec = codec.eval().requires_grad_(False)
        self.mel_weight = mel_weight
        self.seed = seed
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.strict_loading = False  # the codec is in no checkpoint; what is missing beside it is refused
        # Lightning's own weighted means round the weights to whole numbers on several devices.
        self._mel_l1 = MeanMetric()

    def check_data(self, fields: Mapping[str, Sequence[str]]) -> None:
        """Refuse data without reply audio and speech tokens.

        Args:
            fields: Names of the fields that a batch holds, by split.

        Raises:
            UserError: If a split lacks one of them.
        """
        for split, names in fields.items():
            missing = [name for name in ("reply", "units") if name not in names]
            if split != "test" and missing:
                raise UserError(
                    f"the vocoder learns from replies and their speech tokens, but {split} batches lack {missing}; "
                    "add them to the data module's fields"
                )

    @torch.no_grad()
    def decoded_mel(self, batch: SpokenBatch) -> tuple[Tensor, Tensor]:
        """Decode the speech tokens of a batch.

        Returns:
            Log-mel ``(B, 80, F)`` with silence beyond each row's own frames, and their numbers ``(B,) int64``.

        Raises:
            UserError: If the batch has no speech tokens.
        """
        if batch.units is None or batch.unit_lengths is None:
            raise UserError("this batch lacks speech tokens; add 'units' to the data module's fields")
        log_mel = self.codec.decode_mel(batch.units, batch.unit_lengths)
        lengths = batch.unit_lengths * (self.codec.samples_per_token // self.network.hop_samples)
        is_inside = torch.arange(log_mel.shape[2], device=log_mel.device) < lengths[:, None]
        return torch.where(is_inside[:, None], log_mel, SILENCE), lengths

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        """Compute the distance of random crops from their originals."""
        log_mel, wanted = self._crops(batch)
        samples, _ = self.network.step(log_mel, self.network.begin(log_mel))
        samples = samples[:, -wanted.shape[1] :]
        mel_l1 = F.l1_loss(self.codec.log_mel(samples), self.codec.log_mel(wanted))
        stft = self.stft_loss(samples, wanted)
        loss = self.mel_weight * mel_l1 + stft
        self.log_dict({"train/loss": loss, "train/mel_l1": mel_l1, "train/stft": stft}, prog_bar=True)
        return loss

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        """Log the L1 of log-mel over whole replies, all frames of all devices alike."""
        log_mel, lengths = self.decoded_mel(batch)
        samples, reply = self.network(log_mel), self._reply(batch)
        wanted = F.pad(reply, (0, samples.shape[1] - reply.shape[1]))
        error = (self.codec.log_mel(samples) - self.codec.log_mel(wanted)).abs().mean(1)
        is_inside = torch.arange(error.shape[1], device=error.device) < lengths[:, None]
        self._mel_l1.update(error[is_inside].mean(), lengths.sum())
        self.log("val/mel_l1", self._mel_l1, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make Muon and AdamW with warm-up and cosine decay to the trainer's last step."""
        parts = [(self.network, self.learning_rate)]
        return optimizer_with_warmup_cosine(self, parts, self.weight_decay, self.warmup_steps, muon=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen codec out."""
        leave_frozen_out(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that are not those of this module; see :func:`refuse_unfit`."""
        refuse_unfit(checkpoint, self)

    def _crops(self, batch: SpokenBatch) -> tuple[Tensor, Tensor]:
        """Draw a crop of each row: log-mel with the look-ahead behind it ``(B, 80, F + L)``, and samples ``(B, S)``."""
        log_mel, lengths = self.decoded_mel(batch)
        reply, hop = self._reply(batch), self.network.hop_samples
        size, seen = self.crop_frames, self.crop_frames + self.network.lookahead_frames
        generator = derive_generator("cpu", self.seed, self.global_step, self.global_rank)
        share = torch.rand(len(lengths), generator=generator)
        room = (lengths.cpu() + 2 * MARGIN_FRAMES - size).clamp(min=0)
        starts = (share * (room + 1)).long().to(log_mel.device)
        frames = starts[:, None] + torch.arange(seen, device=log_mel.device)
        padded = F.pad(log_mel, (MARGIN_FRAMES, seen + MARGIN_FRAMES), value=SILENCE)
        inputs = padded.gather(2, frames[:, None].expand(-1, padded.shape[1], -1))
        places = hop * starts[:, None] + torch.arange(hop * size, device=reply.device)
        sound = F.pad(
            reply, (hop * MARGIN_FRAMES, log_mel.shape[2] * hop - reply.shape[1] + hop * (seen + MARGIN_FRAMES))
        )
        return inputs, sound.gather(1, places)

    @staticmethod
    def _reply(batch: SpokenBatch) -> Tensor:
        """Give the original replies ``(B, S)``, zero beyond their lengths as batches are."""
        if batch.reply is None or batch.reply_lengths is None:
            raise UserError("this batch lacks reply audio; add 'reply' to the data module's fields")
        return batch.reply
