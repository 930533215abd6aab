"""A batch with masks drawn, and what a masked-diffusion talker learns from it: clean tokens, a teacher, or both."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_modules.talker.anchors import TextStates
from lightning_modules.talker.base import TalkerOutput
from lightning_modules.talker.blocks import BlockedSpeech
from lightning_modules.talker.distillation import SelfDistillation, self_distillation_loss, teacher_trajectory
from lightning_modules.talker.losses import masked_cross_entropy


@dataclass(frozen=True)
class NoisyBatch:
    """One or more noisy copies of a batch, behind each other or as rows of their own.

    Attributes:
        text: What the thinker wrote, a row for each of ``x_t``'s.
        speech: The clean batch, ``(B, L)``.
        targets: Clean tokens, laid out as ``x_t`` is, ``(R, S) int64``.
        is_masked: True where a token is to be predicted, ``(R, S) bool``.
        mask_id: The mask.
    """

    text: TextStates
    speech: BlockedSpeech
    targets: Tensor
    is_masked: Tensor
    mask_id: int

    @property
    def x_t(self) -> Tensor:
        """Partly masked tokens, ``(R, S) int64``."""
        return self.targets.masked_fill(self.is_masked, self.mask_id)

    @property
    def masked_share(self) -> Tensor:
        """Share of the real positions that are masked, over all copies."""
        num_copies = self.targets.numel() // self.speech.x_0.numel()
        return self.is_masked.sum() / (self.speech.is_real.sum() * num_copies)


class MaskedPredictor(Protocol):
    """What masked-diffusion talkers offer beside a loss: drawing masks, and predicting at any of their fillings."""

    head: nn.Linear
    block_size: int

    def corrupt(self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator) -> NoisyBatch:
        """Lay a batch out in blocks and draw its masks."""
        ...

    def masked_hidden(self, batch: NoisyBatch, x_t: Tensor) -> Tensor:
        """Give the hidden states ``(R, S, width)`` that the head predicts from, for a filling ``(R, S)``."""
        ...

    def hidden_and_side_loss(self, batch: NoisyBatch) -> tuple[Tensor, Tensor]:
        """Give the hidden states at ``x_t``, and what the talker learns beside the masked tokens, a scalar."""
        ...


def score_masked(talker: MaskedPredictor, batch: NoisyBatch) -> TalkerOutput:
    """Cross-entropy over the masked positions, plus the talker's side loss.

    Reference: arXiv 2602.08607, loss on masked positions only.
    """
    hidden, side_loss = talker.hidden_and_side_loss(batch)
    nll, accuracy = masked_cross_entropy(talker.head, hidden, batch.targets, batch.is_masked)
    return TalkerOutput(nll + side_loss, nll.detach(), accuracy, batch.is_masked.sum(), batch.masked_share)


def distil_masked(
    talker: MaskedPredictor, teacher: MaskedPredictor, batch: NoisyBatch, settings: SelfDistillation
) -> TalkerOutput:
    """Self-distillation: the student sees the masked input once, the teacher fills it in ``settings.num_steps`` steps.

    Args:
        talker: The student.
        teacher: A frozen copy of it.
        batch: Masks drawn by the student.
        settings: Weight, temperature and steps.

    Returns:
        The loss plus the student's side loss; ``nll`` is its cross-entropy with the clean tokens.

    Reference: arXiv 2602.08607, iterative self-distillation.
    """
    hidden, side_loss = talker.hidden_and_side_loss(batch)
    student_logits, targets = talker.head(hidden[batch.is_masked]), batch.targets[batch.is_masked]
    trajectory = teacher_trajectory(
        lambda x_t, wanted: teacher.head(teacher.masked_hidden(batch, x_t)[wanted]),
        batch.x_t,
        batch.is_masked,
        talker.block_size,
        settings.num_steps,
    )
    loss, _, nll = self_distillation_loss(student_logits, trajectory.logits, targets, settings)
    is_right = student_logits.detach().argmax(dim=-1) == targets
    accuracy = is_right.float().mean() if len(targets) else nll
    return TalkerOutput(loss + side_loss, nll, accuracy, batch.is_masked.sum(), batch.masked_share)
