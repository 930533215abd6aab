"""A vocoder for decoders that see both sides: windows on a fixed grid, cross-faded where they meet."""

from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_within
from lightning_modules.token_format import TokenFormat
from lightning_modules.vocoder.base import Vocoder
from lightning_modules.vocoder.chunk_grid import ChunkGridStream


class TokenDecoder(Protocol):
    """What is asked of a codec's decoder."""

    @property
    def token_format(self) -> TokenFormat:
        """The tokens that it decodes, and the rate of its samples."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``(B, T) int64`` into samples ``(B, T * samples_per_token) float``."""
        ...


class WindowedCodecVocoder(Vocoder):
    """Decodes each chunk of a grid from a window: the chunk, tokens before it and tokens behind it.

    A window also gives ``overlap_tokens`` behind its chunk, over which it fades linearly into the next one. Streamed
    and whole output are the same samples, those of the grid; :meth:`decode_at_once` gives the decoder's own.

    Args:
        codec: The codec that made the tokens; it is frozen.
        chunk_tokens: Tokens per chunk.
        lookback_tokens: Earlier tokens that a window begins with.
        lookahead_tokens: Later tokens that a window ends with; samples come out that much behind their tokens.
        overlap_tokens: Tokens of the cross-fade, at most ``lookahead_tokens`` and ``chunk_tokens``.

    Raises:
        UserError: If a number of tokens is out of its range.

    Reference: windows of 25 + 50 + 5 tokens, faded over one, are those with which NeuTTS streams NeuCodec.
    """

    def __init__(
        self,
        codec: TokenDecoder,
        chunk_tokens: int = 25,
        lookback_tokens: int = 50,
        lookahead_tokens: int = 5,
        overlap_tokens: int = 1,
    ) -> None:
        super().__init__()
        require_at_least(1, chunk_tokens=chunk_tokens)
        require_at_least(0, lookback_tokens=lookback_tokens, lookahead_tokens=lookahead_tokens)
        require_within(0, min(lookahead_tokens, chunk_tokens), overlap_tokens=overlap_tokens)
        self.codec = codec
        self.token_format = codec.token_format
        self.sample_rate = codec.token_format.sample_rate
        self.samples_per_token = codec.token_format.samples_per_token
        self.chunk_tokens, self.lookback_tokens = chunk_tokens, lookback_tokens
        self.lookahead_tokens, self.overlap_tokens = lookahead_tokens, overlap_tokens
        if isinstance(codec, nn.Module):
            codec.eval().requires_grad_(False)

    @property
    def first_chunk_wait_s(self) -> float:
        """Seconds of speech whose tokens must be there before the first samples come out."""
        return (self.chunk_tokens + self.lookahead_tokens) / self.frame_rate_hz

    @property
    def compute_factor(self) -> float:
        """Tokens decoded per token of a long utterance; the one-shot decoder has 1."""
        return (self.lookback_tokens + self.chunk_tokens + self.lookahead_tokens) / self.chunk_tokens

    def stream(self) -> "WindowedStream":
        """Open a streaming session for one utterance."""
        return WindowedStream(self)

    @torch.no_grad()
    def decode_at_once(self, tokens: Tensor) -> Tensor:
        """Decode ``(T,) int64`` by the codec alone, which sees the whole utterance, to ``(T * samples_per_token,)``."""
        if not len(tokens):
            return torch.zeros(0, device=self.codec.device)
        return decode_checked(self.codec, tokens[None])[0]


class WindowedStream(ChunkGridStream):
    """Streaming session of :class:`WindowedCodecVocoder`."""

    def __init__(self, vocoder: WindowedCodecVocoder) -> None:
        assert vocoder.token_format is not None
        super().__init__(vocoder.lookahead_tokens, vocoder.token_format.codebook_size, vocoder.codec.device)
        self.vocoder = vocoder
        # What the window before has to say about the begin of the next chunk; it is faded out there.
        self.tail = torch.zeros(0, device=self.device)

    def chunk_end(self, begin: int) -> int:
        """Give the end of the chunk that begins at a token of the grid."""
        return begin + self.vocoder.chunk_tokens

    def voice(self, begin: int, end: int, num_seen: int) -> Tensor:
        """Decode a chunk; see :meth:`ChunkGridStream.voice`."""
        vocoder, per_token = self.vocoder, self.vocoder.samples_per_token
        first = max(0, begin - vocoder.lookback_tokens)
        window = decode_checked(vocoder.codec, self.tokens[None, first:num_seen])[0]
        own = window[(begin - first) * per_token : (end - first) * per_token].clone()
        # Behind a tail come at least the tokens that its window looked ahead to, so that the fade fits into them.
        share = (torch.arange(len(self.tail), device=self.device) + 0.5) / max(1, len(self.tail))
        own[: len(self.tail)] = torch.lerp(self.tail, own[: len(self.tail)], share)
        overlap = min(vocoder.overlap_tokens, num_seen - end)
        self.tail = window[(end - first) * per_token : (end - first + overlap) * per_token]
        return own


def decode_checked(codec: TokenDecoder, tokens: Tensor) -> Tensor:
    """Decode ``(B, T) int64`` to ``(B, T * samples_per_token) float32``.

    Raises:
        UserError: If the codec gives another number of samples, so that chunks would not lie on their grid.
    """
    waveform = codec.decode(tokens).float()
    expected = (len(tokens), tokens.shape[1] * codec.token_format.samples_per_token)
    if tuple(waveform.shape) != expected:
        raise UserError(
            f"{type(codec).__name__} decoded {tokens.shape[1]} tokens to samples of shape {tuple(waveform.shape)} "
            f"instead of {expected}; its sample rate or frame rate is not what its configuration says"
        )
    return waveform
