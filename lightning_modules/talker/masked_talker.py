"""What talkers that predict masked tokens share: drawing masks, and learning from clean tokens or a teacher."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.base import TalkerOutput
from lightning_modules.talker.blocks import BlockedSpeech
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.unmasking import num_to_reveal, powers_of_two_up_to
from lightning_modules.talker.distillation import (
    SelfDistillation,
    Trajectory,
    draw_own_steps,
    self_distillation_terms,
    unmasking_trajectory,
)
from lightning_modules.talker.losses import LossTerm, masked_cross_entropy, positions_of, token_accuracy
from lightning_modules.talker.masking.schemes import Masking, RowGenerators, check_copies, draw_copies
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.network.transfers import send_to


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


class MaskedTalker(AnchoredTalker):
    """Predicts masked tokens of a block in parallel, and can be taught by a frozen copy of itself.

    Subclasses say how a partly masked batch is read (:meth:`masked_hidden`).

    Args:
        num_codes: Size of the speech codebook.
        anchors: Projects text states and assigns them to blocks.
        backbone: Decoder layers.
        masking: Draws which positions training masks; evaluation keeps it if training moves on to another one.
        block_size: Speech tokens per block.
        clean_context: Noisy copies read their past from a clean copy that they share, and so stand behind each other;
            otherwise each is a row of its own.
        num_noisy_copies: Noisy copies ``x_t``, each with a mask of its own.
        complementary_masks: Let each second copy mask what the one before it leaves clean; needs an even number.

    Raises:
        UserError: If there is no noisy copy, or an odd number of complementary ones.
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
    ) -> None:
        super().__init__(num_codes, anchors, backbone, block_size)
        check_copies(num_noisy_copies, complementary_masks)
        self.masking = self.evaluation_masking = masking
        self.clean_context = clean_context
        self.num_noisy_copies, self.complementary_masks = num_noisy_copies, complementary_masks

    @property
    def supported_steps(self) -> tuple[int, ...]:
        """4, the paper's default, then every power of two up to the block size."""
        return powers_of_two_up_to(self.block_size)

    def check(self, decoding: Decoding) -> None:
        """Refuse refinement, which needs next-token prediction, too; see :class:`Talker`."""
        super().check(decoding)
        if decoding.refinement is not None:
            raise UserError(
                f"decoding of {decoding.talker}: this talker predicts masked tokens only and cannot refine what it "
                "drafts; leave refinement out, or train a SetBlockTalker"
            )

    @abstractmethod
    def masked_hidden(self, batch: NoisyBatch, x_t: Tensor) -> Tensor:
        """Give the hidden states ``(R, S, width)`` that the head predicts from, for a filling ``(R, S)``."""

    def reader(self, batch: NoisyBatch) -> Callable[[Tensor], Tensor]:
        """Give what :meth:`masked_hidden` gives for one filling of a batch after the other, without gradients.

        Subclasses read but once what no filling changes.
        """
        return lambda x_t: self.masked_hidden(batch, x_t)

    def hidden_and_side_terms(self, batch: NoisyBatch) -> tuple[Tensor, tuple[LossTerm, ...]]:
        """Give the hidden states at ``x_t``, and what the talker learns beside the masked tokens."""
        return self.masked_hidden(batch, batch.x_t), ()

    def corrupt(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator | RowGenerators
    ) -> NoisyBatch:
        """Lay a batch out in blocks and draw its masks; arguments as of :meth:`Talker.forward`."""
        speech = self.lay_out(units, unit_lengths)
        masking = self.masking if self.training else self.evaluation_masking
        num_copies = self.num_noisy_copies
        masks = draw_copies(masking, speech.is_real, self.block_size, generator, num_copies, self.complementary_masks)
        copy_dim = 1 if self.clean_context else 0
        targets = torch.cat([speech.x_0] * num_copies, dim=copy_dim)
        rows = text if self.clean_context else text.repeat(num_copies)
        drawn = torch.cat(masks, dim=copy_dim)
        num_masked = drawn.unflatten(1, (-1, self.block_size)).sum(dim=-1)
        is_masked = send_to(targets.device, drawn)
        return NoisyBatch(rows, speech, targets, is_masked, num_masked, self.vocabulary.mask_id, targets)

    def forward(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator | RowGenerators
    ) -> TalkerOutput:
        """Score a batch at masks drawn for it; see :class:`Talker`."""
        return self.score(self.corrupt(text, units, unit_lengths, generator))

    def score(self, batch: NoisyBatch) -> TalkerOutput:
        """Cross-entropy over the masked positions, which is ``nll``, plus the side terms.

        Reference: arXiv 2602.08607, loss on masked positions only.
        """
        hidden, side_terms = self.hidden_and_side_terms(batch)
        num_masked = batch.num_masked.sum()
        nll, accuracy = masked_cross_entropy(self.head, hidden, batch.targets, batch.is_masked, int(num_masked))
        terms = (LossTerm(nll, num_masked), *side_terms)
        return TalkerOutput(terms, nll.detach(), accuracy, num_masked, batch.masked_share)

    def distil(
        self, teacher: Self, batch: NoisyBatch, settings: SelfDistillation, generator: torch.Generator | None = None
    ) -> TalkerOutput:
        """Learn from a teacher: this student sees the masked input once, the teacher fills it step by step.

        Args:
            teacher: A frozen copy of this talker.
            batch: Masks drawn by this talker.
            settings: Weight, temperature, the teacher's steps, and where the student takes steps of its own first.
            generator: Draws these places, on the host.

        Returns:
            The loss plus the side terms; ``nll`` is the cross-entropy with the clean tokens.

        Reference: arXiv 2602.08607, iterative self-distillation.
        """
        if settings.on_policy_share > 0.0:
            batch = self.take_own_steps(batch, settings, generator)
        hidden, side_terms = self.hidden_and_side_terms(batch)
        masked = batch.masked_positions
        student_logits = self.head(hidden.flatten(0, 1).index_select(0, masked))
        targets = batch.targets.flatten().index_select(0, masked)
        trajectory = teacher.unmask(batch, settings.num_steps)
        terms, nll = self_distillation_terms(student_logits, trajectory.logits, targets, settings)
        accuracy = token_accuracy(student_logits, targets)
        return TalkerOutput((*terms, *side_terms), nll, accuracy, batch.num_masked.sum(), batch.masked_share)

    @torch.no_grad()
    def unmask(self, batch: NoisyBatch, num_steps: int, stop_after: int | None = None) -> Trajectory:
        """Fill the masks of a batch step by step; see :func:`unmasking_trajectory`."""
        read = self.reader(batch)
        return unmasking_trajectory(
            lambda x_t, wanted: self.head(read(x_t).flatten(0, 1).index_select(0, wanted)),
            batch.x_t,
            batch.is_masked,
            batch.num_masked,
            num_steps,
            stop_after,
        )

    def take_own_steps(
        self, batch: NoisyBatch, settings: SelfDistillation, generator: torch.Generator | None
    ) -> NoisyBatch:
        """Reveal, in some blocks, what this talker itself says in its first steps; see :class:`SelfDistillation`."""
        num_rows, num_blocks = batch.num_masked.shape
        own_steps = draw_own_steps(num_rows, num_blocks, settings, generator)
        num_steps = int(own_steps.max())
        if num_steps == 0:
            return batch
        trajectory = self.unmask(batch, settings.num_steps, num_steps)
        up_to = send_to(batch.is_masked.device, own_steps.repeat_interleave(self.block_size, dim=1))
        is_revealed = (trajectory.step >= 0) & (trajectory.step < up_to)
        num_masked = batch.num_masked
        for step in range(num_steps):
            revealed = num_to_reveal(num_masked, settings.num_steps - step)
            num_masked = torch.where(step < own_steps, num_masked - revealed, num_masked)
        return replace(
            batch,
            visible=torch.where(is_revealed, trajectory.tokens, batch.visible),
            is_masked=batch.is_masked & ~is_revealed,
            num_masked=num_masked,
        )
