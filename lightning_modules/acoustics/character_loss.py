"""The loss of reading characters off frames."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def character_loss(log_probs: Tensor, num_frames: Tensor, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Compute the CTC loss; a row whose text does not fit into its frames counts as 0.

    Args:
        log_probs: ``(B, F, 1 + characters) float32``, blank first.
        num_frames: Frames of each row, ``(B,) int64``.
        texts: B rows of character ids, from 1 on.

    Returns:
        The mean in nats per character, and how many characters there are, on the host.

    Reference: Connectionist Temporal Classification, ICML 2006.
    """
    text_lengths = torch.tensor([len(text) for text in texts])
    losses = F.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor([character for text in texts for character in text], device=log_probs.device),
        num_frames,
        text_lengths.to(num_frames.device),
        reduction="none",
        zero_infinity=True,
    )
    num_characters = text_lengths.sum()
    return losses.sum() / num_characters.clamp(min=1), num_characters
