"""The interface of every vocoder: tokens to waveform, whole or streamed, ``samples_per_token`` samples per token."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


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
    """

    sample_rate: int
    samples_per_token: int

    @abstractmethod
    def stream(self) -> VocoderStream:
        """Open a streaming session for one utterance."""

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``(T,) int64`` into a waveform ``(T * samples_per_token,) float32``."""
        return self.stream().push(tokens, last=True)
