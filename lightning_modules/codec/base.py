"""What is asked of whatever turns speech into tokens; what turns tokens into speech is a ``Vocoder``."""

from typing import Protocol

import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.token_format import TokenFormat


class SpeechTokenizer(Protocol):
    """Speech to tokens. The embedded codec, NeuCodec, X-Codec2 and CosyVoice2's tokenizer are such."""

    @property
    def sample_rate(self) -> int:
        """Samples per second of the speech that it takes."""
        ...

    @property
    def token_format(self) -> TokenFormat:
        """The tokens that it gives, and the rate of the speech that they are decoded to."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def eval(self) -> "SpeechTokenizer":
        """Switch to evaluation mode."""
        ...

    def encode(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize speech; the tokens of a row do not depend on the other rows.

        Args:
            waveform: ``(B, S) float32`` at ``sample_rate``.
            lengths: ``(B,) int64`` samples; None means that all rows are full.

        Returns:
            Tokens ``(B, T) int64``, 0 beyond each row's own number, and those numbers ``(B,) int64``.

        Raises:
            UserError: If the waveform is not ``(B, S)``, or a length exceeds it.
        """
        ...


def split_rows(waveform: Tensor, lengths: Tensor | None) -> list[Tensor]:
    """Cut a padded batch into its rows.

    Args:
        waveform: ``(B, S) float32``.
        lengths: ``(B,) int64`` samples; None means that all rows are full.

    Returns:
        B rows, each of its own length.

    Raises:
        UserError: If the waveform is not ``(B, S)``, or the lengths do not fit it.
    """
    if waveform.dim() != 2:
        raise UserError(f"waveform must be (batch, samples), got shape {tuple(waveform.shape)}")
    sizes = [waveform.shape[1]] * len(waveform) if lengths is None else lengths.tolist()
    if len(sizes) != len(waveform) or any(not 0 <= size <= waveform.shape[1] for size in sizes):
        raise UserError(f"lengths {sizes} do not fit a waveform of shape {tuple(waveform.shape)}")
    return [row[:size] for row, size in zip(waveform, sizes, strict=True)]
