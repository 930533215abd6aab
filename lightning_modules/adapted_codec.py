"""A trained codec whose mel decoder learns another voice, as an adapter, while its tokens stay as they are."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.batch import SpokenBatch
from lightning_modules.acoustics.log_mel import zero_beyond
from lightning_modules.adapters.adapter_set import TRAINED, adapt
from lightning_modules.adapters.lora import LoraSettings
from lightning_modules.speech_codec import FRAMES_PER_TOKEN, SAMPLES_PER_TOKEN, SpeechCodec
from lightning_modules.talker.losses import LossTerm
from lightning_modules.training.reduction import mean_over_ranks
from lightning_modules.training.seeding import derive_generator
from lightning_modules.vocoder.base import CODEC_PART


class AdaptedCodec(SpeechCodec):
    """A trained codec with an adapter that speaks its tokens in another voice: a copy of its mel decoder, trained on.

    The decoder of a codec that heard one voice gives all tokens that voice. Encoder and quantiser stay, so that talkers
    speak the tokens that they know. A batch with "units" teaches to say these tokens as the reply sounds: give those of
    the same texts in the voice that the talkers learned, spoken at the same pace. Without them the reply's own tokens
    are said, which needs no second recording, but fits less well what talkers say.

    Args:
        codec: The trained codec.
        crop_s: Length of the random training crops in seconds; a multiple of 0.04.
        seed: Seed of the crops, which are a pure function of seed, global step and rank.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Steps of linear warm-up before the cosine decay.

    Raises:
        UserError: If a constructor value is out of its range.
    """

    def __init__(
        self,
        codec: SpeechCodec,
        crop_s: float = 1.6,
        seed: int = 0,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
    ) -> None:
        super().__init__(
            codec.levels,
            codec.channels,
            codec.lookahead_tokens,
            crop_s=crop_s,
            seed=seed,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
        )
        self.encoder, self.quantizer, self.decoder = codec.encoder, codec.quantizer, codec.decoder
        # The decoder has no linear layers for LoRA, and is small: the adapter holds a copy of it.
        learned = LoraSettings(targets=(), modules_to_save=("decoder",))
        self.adapters = adapt({CODEC_PART: self}, {CODEC_PART: learned}, {}, seed)
        self.train()  # what was loaded is in evaluation mode

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, named after the part of a speech LLM that it belongs to."""
        self.adapters.save(TRAINED, folder)

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        """Compute the L1 between the log-mel of random reply crops and what the decoder makes of the tokens there."""
        reply, tokens, lengths = self._aligned(batch)
        generator = derive_generator("cpu", self.seed, self.global_step, self.global_rank)
        room = (lengths.cpu() - self.crop_tokens).clamp(min=0)
        starts = (torch.rand(len(lengths), generator=generator) * (room + 1)).long().to(reply.device)
        places = starts[:, None] + torch.arange(self.crop_tokens, device=reply.device)
        samples = torch.arange(-SAMPLES_PER_TOKEN, (self.crop_tokens + 1) * SAMPLES_PER_TOKEN, device=reply.device)
        padded = F.pad(reply, (SAMPLES_PER_TOKEN, (self.crop_tokens + 1) * SAMPLES_PER_TOKEN))
        heard = padded.gather(1, (starts[:, None] + 1) * SAMPLES_PER_TOKEN + samples)
        log_mel = self.log_mel(heard)[:, :, FRAMES_PER_TOKEN:-FRAMES_PER_TOKEN]
        codes = self.quantizer.indices_to_codes(F.pad(tokens, (0, self.crop_tokens)).gather(1, places))
        is_inside = places < lengths[:, None]
        codes = codes * is_inside[:, :, None]  # what lies beyond the last token is as in decoding
        error = (self.decoder(codes.transpose(1, 2)).float() - log_mel).abs().mean(1)
        loss = error[is_inside.repeat_interleave(FRAMES_PER_TOKEN, 1)].mean()
        self.log("train/loss", loss, prog_bar=True)
        return mean_over_ranks([LossTerm(loss, is_inside.sum())], self.trainer.world_size)

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        """Log the L1 over whole replies, all tokens of all devices alike."""
        reply, tokens, lengths = self._aligned(batch)
        log_mel = self.log_mel(F.pad(reply, (0, -reply.shape[1] % SAMPLES_PER_TOKEN)))
        frames = min(log_mel.shape[2], FRAMES_PER_TOKEN * tokens.shape[1])
        error = (self.decode_mel(tokens, lengths)[:, :, :frames] - log_mel[:, :, :frames]).abs().mean(1)
        is_inside = torch.arange(frames, device=error.device) < FRAMES_PER_TOKEN * lengths[:, None]
        self._mel_l1.update(error[is_inside].mean(), lengths.sum())
        self.log("val/mel_l1", self._mel_l1, prog_bar=True)

    def _aligned(self, batch: SpokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Give replies ``(B, S)``, tokens ``(B, T)``, 0 beyond each row's own, and how many both have ``(B,)``."""
        reply, lengths = self._replies(batch)
        reply = zero_beyond(reply, lengths)
        if batch.units is None or batch.unit_lengths is None:
            return reply, *self.encode(reply, lengths)
        token_lengths = torch.minimum(batch.unit_lengths, self.token_lengths(lengths))
        return reply, zero_beyond(batch.units, token_lengths), token_lengths
