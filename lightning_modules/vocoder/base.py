"""The interface of every vocoder: tokens to waveform, whole or streamed, ``samples_per_token`` samples per token."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_modules.token_format import TokenFormat

CODEC_PART = "vocoder.codec"  # the embedded codec inside a vocoder, as adapters name it


class VocoderStream(ABC):
    """Streaming of one utterance; the outputs of pushes of any sizes, concatenated, are the waveform of the whole."""

    @abstractmethod
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Take the next tokens and return the samples that no later token can change.

        Args:
            tokens: ``(n,) int64``, n at least 0.
            last: Whether the utterance ends with them; then all samples that were held back are returned.

        Returns:
            Samples ``(m,) float32``, m at least 0.

        Raises:
            UserError: If the stream has ended already, or the tokens are not one row.
        """


class Vocoder(nn.Module, ABC):
    """Speech tokens to waveform.

    Attributes:
        sample_rate: Samples per second of the output.
        samples_per_token: Samples that stand for one token.
        token_format: The tokens that it takes; None takes any, and nothing is checked against it.
    """

    sample_rate: int
    samples_per_token: int
    token_format: TokenFormat | None = None

    @property
    def frame_rate_hz(self) -> float:
        """Tokens per second of speech."""
        return self.sample_rate / self.samples_per_token

    @property
    def codebook_size(self) -> int | None:
        """Number of distinct tokens; None if it takes any."""
        return None if self.token_format is None else self.token_format.codebook_size

    def adaptable_parts(self) -> dict[str, nn.Module]:
        """Give the modules that adapters may change, by name, to let another voice speak; none unless told."""
        return {}

    @abstractmethod
    def stream(self) -> VocoderStream:
        """Open a streaming session for one utterance."""

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``(T,) int64`` into a waveform ``(T * samples_per_token,) float32``."""
        return self.stream().push(tokens, last=True)
