"""Noisy copies of a batch, which masked talkers predict the masked tokens of."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.talker.blocks import BlockedSpeech
from lightning_modules.talker.losses import positions_of
from lightning_modules.talker.network.anchors import TextStates


@dataclass(frozen=True)
class NoisyBatch:
    """One or more noisy copies of a batch, behind each other or as rows of their own.

    Attributes:
        text: What the thinker wrote, a row for each of ``x_t``'s.
        speech: The clean batch, ``(B, L)``.
        targets: Clean tokens, laid out as ``x_t`` is, ``(R, S) int64``.
        is_masked: True where a token is to be predicted, ``(R, S) bool``.
        num_masked: How many these are in each block, ``(R, S / block_size) int64``, on the host.
        mask_id: The mask.
        visible: What is read where there is no mask, ``(R, S) int64``: the clean tokens, or a talker's own.
        starts: Where in the clean reply each block of ``x_t`` begins, ``(R, S / block_size) int64``, if not every block
            of it stands there as often as any other.
    """

    text: TextStates
    speech: BlockedSpeech
    targets: Tensor
    is_masked: Tensor
    num_masked: Tensor
    mask_id: int
    visible: Tensor
    starts: Tensor | None = None

    @property
    def x_t(self) -> Tensor:
        """Partly masked tokens, ``(R, S) int64``."""
        return self.visible.masked_fill(self.is_masked, self.mask_id)

    @property
    def filled(self) -> Tensor:
        """What is read where there is no mask, and the clean tokens where there is one, ``(R, S) int64``."""
        return torch.where(self.is_masked, self.targets, self.visible)

    @property
    def masked_share(self) -> Tensor:
        """Share of the real positions that are masked, over all copies."""
        if self.starts is not None:
            return self.num_masked.sum() / self.targets.numel()
        num_copies = self.targets.numel() // self.speech.x_0.numel()
        return self.num_masked.sum() / (self.speech.is_real.sum() * num_copies)

    @property
    def masked_positions(self) -> Tensor:
        """Indices of the masked positions into the flattened ``is_masked``, ``(n,) int64``."""
        return positions_of(self.is_masked, self.is_masked.device, int(self.num_masked.sum()))
