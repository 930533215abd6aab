"""The neural vocoder of the embedded codec: its decoder's log-mel, turned into samples by a trained network."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.vocoder.base import CODEC_PART, Vocoder, VocoderStream
from lightning_modules.vocoder.codec_vocoder import MelCodec


class StreamedMelNetwork(Protocol):
    """Interface of a network from log-mel to samples that carries a state of fixed size from step to step."""

    hop_samples: int
    lookahead_frames: int
    silence: float

    def begin(self, log_mel: Tensor) -> Any:
        """Give the state of streams before their first frame, for log-mel like ``(B, M, F)``."""
        ...

    def step(self, log_mel: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Map the next frames to as many hops of samples, ``lookahead_frames`` earlier ones, and the next state."""
        ...


class NeuralCodecVocoder(Vocoder):
    """Tokens to waveform by a codec's mel decoder and a streamed network; streamed and whole are the same samples.

    Samples come out ``delay_s`` after their tokens, in steps of ``block_tokens``, however the tokens are pushed: the
    network always takes the frames of one block at a time, so that not even rounding differs.

    Args:
        codec: The codec that made the tokens; it is frozen.
        network: A trained network, such as :class:`lightning_modules.acoustics.vocos.Vocos`; it is frozen.
        block_tokens: Tokens that are turned into samples together: fewer answer sooner, more take less time in total.

    Raises:
        UserError: If ``block_tokens`` is below 1, or codec and network differ in their hop.
    """

    def __init__(self, codec: MelCodec, network: StreamedMelNetwork, block_tokens: int = 5) -> None:
        super().__init__()
        require_at_least(1, block_tokens=block_tokens)
        if codec.log_mel.hop_samples != network.hop_samples:
            raise UserError(
                f"the codec's mel frames are {codec.log_mel.hop_samples} samples apart, those of the network "
                f"{network.hop_samples}; give a network that was trained with this codec"
            )
        self.codec = codec
        self.network = network
        self.block_tokens = block_tokens
        self.token_format = codec.token_format
        self.sample_rate = codec.sample_rate
        self.samples_per_token = codec.samples_per_token
        self.frames_per_token = codec.samples_per_token // network.hop_samples
        for part in (codec, network):
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)

    @property
    def delay_s(self) -> float:
        """Seconds by which the output lags behind the pushed tokens once they fill a block."""
        lag = self.codec.lookahead_tokens * self.samples_per_token
        return (lag + self.network.lookahead_frames * self.network.hop_samples) / self.sample_rate

    def adaptable_parts(self) -> dict[str, nn.Module]:
        """Give the codec, whose decoder has the voice."""
        return {CODEC_PART: self.codec} if isinstance(self.codec, nn.Module) else {}

    def stream(self) -> VocoderStream:
        """Open a streaming session for one utterance."""
        return NeuralCodecVocoderStream(self)


class NeuralCodecVocoderStream(VocoderStream):
    """Streaming session of :class:`NeuralCodecVocoder`; what it keeps does not grow with the utterance."""

    def __init__(self, vocoder: NeuralCodecVocoder) -> None:
        self.vocoder = vocoder
        self.device = vocoder.codec.log_mel.window.device
        self.tokens = torch.zeros(0, dtype=torch.long, device=self.device)
        self.num_past = 0  # of these, the first ones have been voiced and are context of the decoder
        self.ended = False
        self.state: Any = None  # of the network; None before the first frame
        self.num_early = vocoder.network.lookahead_frames * vocoder.network.hop_samples  # samples before the utterance

    @torch.no_grad()
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Take the next tokens ``(n,)`` and return samples ``(m,)``; see :meth:`VocoderStream.push`."""
        if self.ended:
            raise UserError("this vocoder stream has ended; open a new one with stream()")
        if tokens.dim() != 1:
            raise UserError(f"tokens must be one row (n,), got shape {tuple(tokens.shape)}")
        self.tokens = torch.cat([self.tokens, tokens.to(self.device, torch.long)])
        self.ended = last
        block, wait = self.vocoder.block_tokens, self.vocoder.codec.lookahead_tokens
        pieces = [torch.zeros(0, device=self.device)]
        while self.num_past + block + wait <= len(self.tokens):
            pieces.append(self._voice(block))
        while last and self.num_past < len(self.tokens):
            pieces.append(self._voice(min(block, len(self.tokens) - self.num_past)))
        if last and self.state is not None:
            network = self.vocoder.network
            num_mels = self.vocoder.codec.log_mel.filters.shape[0]
            silence = torch.full((1, num_mels, network.lookahead_frames), network.silence, device=self.device)
            pieces.append(self._sound(silence))
        return torch.cat(pieces)

    def _voice(self, count: int) -> Tensor:
        """Turn the next tokens into samples, and forget tokens that no later frame depends on."""
        codec, per_token = self.vocoder.codec, self.vocoder.frames_per_token
        log_mel = codec.decode_mel(self.tokens[None, : self.num_past + count + codec.lookahead_tokens])
        samples = self._sound(log_mel[:, :, self.num_past * per_token : (self.num_past + count) * per_token])
        kept = min(self.num_past + count, codec.left_context_tokens)
        self.tokens = self.tokens[self.num_past + count - kept :]
        self.num_past = kept
        return samples

    def _sound(self, log_mel: Tensor) -> Tensor:
        """Take frames ``(1, M, F)`` and return the samples that they complete."""
        with torch.autocast(log_mel.device.type, enabled=False):
            log_mel = log_mel.float()
            state = self.vocoder.network.begin(log_mel) if self.state is None else self.state
            samples, self.state = self.vocoder.network.step(log_mel, state)
        early = min(self.num_early, samples.shape[1])
        self.num_early -= early
        return samples[0, early:]
