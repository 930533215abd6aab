"""What every vocoder offers: tokens to waveform, whole or streamed, exactly `samples_per_token` samples a token."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class VocoderStream(ABC):
    """One utterance in the making; pushes of any sizes give, concatenated, the waveform of the whole."""

    @abstractmethod
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Takes the next tokens and returns the samples that are final by now.

        Args:
            tokens: (n,) int64, n >= 0.
            last: Whether the utterance ends with them; then all that was held back is returned.

        Returns:
            (m,) float32, m >= 0.

        Raises:
            UserError: The stream has ended already, or the tokens are not one row.
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
        """Opens a streaming session for one utterance."""

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """The waveform (T * samples_per_token,) float32 of tokens (T,) int64."""
        return self.stream().push(tokens, last=True)
