"""What talkers that predict masked tokens share: drawing masks, and learning from clean tokens or a teacher."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightning_modules.talker.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.backbone import TalkerBackbone
from lightning_modules.talker.base import Talker, TalkerOutput
from lightning_modules.talker.blocks import BlockedSpeech
from lightning_modules.talker.distillation import SelfDistillation, self_distillation_loss, teacher_trajectory
from lightning_modules.talker.losses import masked_cross_entropy, token_accuracy
from lightning_modules.talker.masking import Masking, check_copies, draw_copies
from lightning_modules.talker.unmasking import Unmasking, powers_of_two_up_to


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


class MaskedTalker(Talker, ABC):
    """Predicts masked tokens of a block in parallel, and can be taught by a frozen copy of itself.

    Subclasses say how a partly masked batch is read (:meth:`masked_hidden`).

    Args:
        num_codes: Size of the speech codebook.
        anchors: Projects text states and assigns them to blocks.
        backbone: Decoder layers.
        masking: Draws which positions training masks; evaluation keeps it if training moves on to another one.
        block_size: Speech tokens a block.
        clean_context: Noisy copies read their past from a clean copy that they share, and so stand behind each other;
            otherwise each is a row of its own.
        num_noisy_copies: Noisy copies ``x_t``, each with a mask of its own.
        complementary_masks: Let each second copy mask what the one before it leaves clean; needs an even number.
        unmasking: How a block is filled in decoding; as in the paper if left out.

    Raises:
        ValueError: If there is no noisy copy, or an odd number of complementary ones.
    """

    def __init__(
        self,
        num_codes: int,
        anchors: SemanticAnchors,
        backbone: TalkerBackbone,
        masking: Masking,
        block_size: int,
        clean_context: bool,
        num_noisy_copies: int,
        complementary_masks: bool,
        unmasking: Unmasking | None,
    ) -> None:
        super().__init__(num_codes, anchors, backbone, block_size)
        check_copies(num_noisy_copies, complementary_masks)
        self.masking = self.evaluation_masking = masking
        self.clean_context = clean_context
        self.num_noisy_copies, self.complementary_masks = num_noisy_copies, complementary_masks
        self.unmasking = unmasking or Unmasking()

    @property
    def supported_steps(self) -> tuple[int, ...]:
        """4, the paper's default, then every power of two up to the block size."""
        return powers_of_two_up_to(self.block_size)

    @abstractmethod
    def masked_hidden(self, batch: NoisyBatch, x_t: Tensor) -> Tensor:
        """Give the hidden states ``(R, S, width)`` that the head predicts from, for a filling ``(R, S)``."""

    def hidden_and_side_loss(self, batch: NoisyBatch) -> tuple[Tensor, Tensor]:
        """Give the hidden states at ``x_t``, and what the talker learns beside the masked tokens, a scalar."""
        hidden = self.masked_hidden(batch, batch.x_t)
        return hidden, hidden.new_zeros(())

    def corrupt(self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator) -> NoisyBatch:
        """Lay a batch out in blocks and draw its masks; arguments as of :meth:`Talker.forward`."""
        speech = self.lay_out(units, unit_lengths)
        masking = self.masking if self.training else self.evaluation_masking
        num_copies = self.num_noisy_copies
        masks = draw_copies(masking, speech.is_real, self.block_size, generator, num_copies, self.complementary_masks)
        copy_dim = 1 if self.clean_context else 0
        targets = torch.cat([speech.x_0] * num_copies, dim=copy_dim)
        rows = text if self.clean_context else text.repeat(num_copies)
        return NoisyBatch(rows, speech, targets, torch.cat(masks, dim=copy_dim), self.vocabulary.mask_id)

    def forward(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator
    ) -> TalkerOutput:
        """Score a batch at masks drawn for it; see :class:`Talker`."""
        return self.score(self.corrupt(text, units, unit_lengths, generator))

    def score(self, batch: NoisyBatch) -> TalkerOutput:
        """Cross-entropy over the masked positions, which is ``nll``, plus the side loss.

        Reference: arXiv 2602.08607, loss on masked positions only.
        """
        hidden, side_loss = self.hidden_and_side_loss(batch)
        nll, accuracy = masked_cross_entropy(self.head, hidden, batch.targets, batch.is_masked)
        return TalkerOutput(nll + side_loss, nll.detach(), accuracy, batch.is_masked.sum(), batch.masked_share)

    def distil(self, teacher: Self, batch: NoisyBatch, settings: SelfDistillation) -> TalkerOutput:
        """Learn from a teacher: this student sees the masked input once, the teacher fills it step by step.

        Args:
            teacher: A frozen copy of this talker.
            batch: Masks drawn by this talker.
            settings: Weight, temperature and the teacher's steps.

        Returns:
            The loss plus the side loss; ``nll`` is the cross-entropy with the clean tokens.

        Reference: arXiv 2602.08607, iterative self-distillation.
        """
        hidden, side_loss = self.hidden_and_side_loss(batch)
        student_logits, targets = self.head(hidden[batch.is_masked]), batch.targets[batch.is_masked]
        trajectory = teacher_trajectory(
            lambda x_t, wanted: teacher.head(teacher.masked_hidden(batch, x_t)[wanted]),
            batch.x_t,
            batch.is_masked,
            self.block_size,
            settings.num_steps,
        )
        loss, _, nll = self_distillation_loss(student_logits, trajectory.logits, targets, settings)
        accuracy = token_accuracy(student_logits, targets)
        return TalkerOutput(loss + side_loss, nll, accuracy, batch.is_masked.sum(), batch.masked_share)
