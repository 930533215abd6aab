"""The vocoder of the embedded codec: its decoder's log-mel, turned into samples block by block with Griffin-Lim."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.token_format import TokenFormat
from lightning_modules.vocoder.base import CODEC_PART, Vocoder, VocoderStream
from lightning_modules.vocoder.griffin_lim import GriffinLim


class MelCodec(Protocol):
    """Interface of a codec to the vocoder: a token decoder with known context, and its log-mel."""

    sample_rate: int
    samples_per_token: int
    log_mel: Any

    @property
    def token_format(self) -> TokenFormat:
        """The tokens that it decodes."""
        ...

    @property
    def left_context_tokens(self) -> int:
        """Tokens before t that the mel frames of t may depend on."""
        ...

    @property
    def lookahead_tokens(self) -> int:
        """Tokens after t that the mel frames of t may depend on."""
        ...

    def decode_mel(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(1, T)`` to log-mel ``(1, M, F)``."""
        ...


class CodecVocoder(Vocoder):
    """Tokens to waveform by a codec's mel decoder and Griffin-Lim; whole and streamed output are the same samples.

    Samples come out ``delay_s`` after their tokens, in steps of ``block_tokens``, however the tokens are pushed.

    Args:
        codec: The codec that made the tokens; it is frozen.
        block_tokens: Tokens whose phases are found together.
        context_frames: Earlier frames, with fixed samples, that the phases are fitted to.
        ahead_frames: Frames whose samples wait for the next block, because later frames overlap them.
        num_iterations: Griffin-Lim iterations per block.
        momentum: Acceleration of Griffin-Lim, at least 0 and below 1.

    Raises:
        UserError: If a number of tokens or frames is out of its range.
    """

    def __init__(
        self,
        codec: MelCodec,
        block_tokens: int = 3,
        context_frames: int = 6,
        ahead_frames: int = 2,
        num_iterations: int = 16,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        if block_tokens < 1 or context_frames < 3 or ahead_frames < 0:
            raise UserError(
                f"block_tokens is {block_tokens}, context_frames {context_frames} and ahead_frames {ahead_frames}; "
                "give at least 1, 3 and 0"
            )
        self.codec = codec
        log_mel = codec.log_mel
        self.token_format = codec.token_format
        self.sample_rate = codec.sample_rate
        self.samples_per_token = codec.samples_per_token
        self.frames_per_token = codec.samples_per_token // log_mel.hop_samples
        if ahead_frames >= block_tokens * self.frames_per_token:
            raise UserError(
                f"ahead_frames is {ahead_frames}; give fewer than a block has, "
                f"{block_tokens * self.frames_per_token}, or raise block_tokens"
            )
        self.block_tokens = block_tokens
        self.context_frames = context_frames
        self.ahead_frames = ahead_frames
        self.griffin_lim = GriffinLim(log_mel.window, log_mel.filters, log_mel.hop_samples, num_iterations, momentum)
        if isinstance(codec, nn.Module):
            codec.eval().requires_grad_(False)

    @property
    def delay_s(self) -> float:
        """Seconds by which the output lags behind the pushed tokens once they fill a block."""
        lag = self.codec.lookahead_tokens * self.samples_per_token + self.ahead_frames * self.griffin_lim.hop_samples
        return lag / self.sample_rate

    def adaptable_parts(self) -> dict[str, nn.Module]:
        """Give the codec, whose decoder has the voice."""
        return {CODEC_PART: self.codec} if isinstance(self.codec, nn.Module) else {}

    def stream(self) -> VocoderStream:
        """Open a streaming session for one utterance."""
        return CodecVocoderStream(self)


class CodecVocoderStream(VocoderStream):
    """Streaming session of :class:`CodecVocoder`."""

    def __init__(self, vocoder: CodecVocoder) -> None:
        self.vocoder = vocoder
        self.device = vocoder.griffin_lim.window.device
        self.tokens = torch.zeros(0, dtype=torch.long, device=self.device)
        self.ended = False
        self.num_voiced = 0  # tokens whose phases have been found
        self.num_emitted = 0  # samples returned
        hop, edge = vocoder.griffin_lim.hop_samples, vocoder.griffin_lim.edge_samples
        # The newest samples and mel magnitudes before the end of token num_voiced; silence before the first token.
        self.past = torch.zeros(vocoder.context_frames * hop + 2 * edge, device=self.device)
        self.past_mel = torch.zeros(vocoder.griffin_lim.filters.shape[0], vocoder.context_frames, device=self.device)

    @torch.no_grad()
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Take the next tokens ``(n,)`` and return samples ``(m,)``; see :meth:`VocoderStream.push`."""
        if self.ended:
            raise UserError("this vocoder stream has ended; open a new one with stream()")
        if tokens.dim() != 1:
            raise UserError(f"tokens must be one row (n,), got shape {tuple(tokens.shape)}")
        self.tokens = torch.cat([self.tokens, tokens.to(self.device, torch.long)])
        self.ended = last
        # A block waits for a token after it even if the decoder does not, so that the last block is known as such.
        wait = max(1, self.vocoder.codec.lookahead_tokens)
        pieces = [torch.zeros(0, device=self.device)]
        while (end := self.num_voiced + self.vocoder.block_tokens) + wait <= len(self.tokens):
            pieces.append(self._voice(end))
        while last and self.num_voiced < len(self.tokens):
            pieces.append(self._voice(min(self.num_voiced + self.vocoder.block_tokens, len(self.tokens))))
        return torch.cat(pieces)

    def _decode(self, end: int) -> Tensor:
        """Decode tokens ``num_voiced .. end - 1`` to mel magnitudes ``(M, F)``."""
        codec, per_token = self.vocoder.codec, self.vocoder.frames_per_token
        first = max(0, self.num_voiced - codec.left_context_tokens)
        log_mel = codec.decode_mel(self.tokens[None, first : end + codec.lookahead_tokens])[0]
        is_new = slice((self.num_voiced - first) * per_token, (end - first) * per_token)
        return codec.log_mel.mel_magnitude(log_mel[:, is_new])

    def _voice(self, end: int) -> Tensor:
        """Find the samples of tokens ``num_voiced .. end - 1`` and return those that no later frame can change."""
        vocoder, griffin_lim = self.vocoder, self.vocoder.griffin_lim
        hop, edge = griffin_lim.hop_samples, griffin_lim.edge_samples
        is_last = self.ended and end == len(self.tokens)
        mel = torch.cat([self.past_mel, self._decode(end)], dim=1)
        begin_sample = self.num_voiced * vocoder.samples_per_token
        end_sample = end * vocoder.samples_per_token
        origin = begin_sample - vocoder.context_frames * hop - edge  # where the segment begins in the utterance

        tail = -(-2 * edge // hop) if is_last else 0
        known = F.pad(self.past, (0, (mel.shape[1] + tail) * hop + 2 * edge - len(self.past)))
        position = torch.arange(origin, origin + len(known), device=self.device)
        trust = ((begin_sample - position) / max(1, begin_sample - self.num_emitted)).clamp(0.0, 1.0)
        waveform = griffin_lim(F.pad(mel, (0, tail)), known, trust)

        final = end_sample if is_last else end_sample - vocoder.ahead_frames * hop
        emitted = waveform[self.num_emitted - origin : final - origin]
        self.past = waveform[end_sample + edge - origin - len(self.past) : end_sample + edge - origin]
        self.past_mel = mel[:, -vocoder.context_frames :]
        self.num_voiced, self.num_emitted = end, final
        return emitted
