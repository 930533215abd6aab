"""What talkers that predict masked tokens share: drawing masks, and learning from clean tokens or a teacher."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.base import Talker, TalkerOutput
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.static.program import SpeechParts
from lightning_modules.talker.decoding.unmasking import num_to_reveal, powers_of_two_up_to
from lightning_modules.talker.losses import LossTerm, masked_cross_entropy, token_accuracy
from lightning_modules.talker.masked.distillation import (
    SelfDistillation,
    Trajectory,
    draw_own_steps,
    self_distillation_terms,
    unmasking_trajectory,
)
from lightning_modules.talker.masked.noisy_batch import NoisyBatch
from lightning_modules.talker.masking.schemes import Masking, RowGenerators, check_copies, draw_copies
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.network.token_coupling import TokenCoupling, coupled_logits
from lightning_modules.talker.network.transfers import send_to


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
        coupling_size: Width of a :class:`TokenCoupling` behind the backbone; 0 predicts masked tokens independently, as
            the paper does.

    Raises:
        UserError: If there is no noisy copy, or an odd number of complementary ones.
    """

    own_parts = ("coupling.",)
    embeddings = ("embed_tokens", "coupling.embed")

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
        coupling_size: int,
    ) -> None:
        super().__init__(num_codes, anchors, backbone, block_size)
        require_at_least(0, coupling_size=coupling_size)
        ids = self.vocabulary
        sizes = backbone.width, ids.size, ids.num_outputs, coupling_size
        self.coupling = TokenCoupling(*sizes, ids.bos_id) if coupling_size else None
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
        self.check_sampler(decoding)
        if decoding.refinement is not None:
            raise UserError(
                f"decoding of {decoding.talker}: this talker predicts masked tokens only and cannot refine what it "
                "drafts; leave refinement out, or train a SetBlockTalker"
            )

    def check_sampler(self, decoding: Decoding) -> None:
        """Refuse to draw tokens that are coupled.

        Raises:
            UserError: If tokens are to be drawn, and the talker has a coupling, which predicts each from the most
                probable ones before it.
        """
        if self.coupling is not None and decoding.sampler is not None and decoding.sampler.temperature > 0:
            raise UserError(
                f"decoding of {decoding.talker}: its coupling predicts each token from the most probable ones before "
                f"it, so that none can be drawn; leave the sampler's temperature ({decoding.sampler.temperature:g}) "
                "out, or train a talker with coupling_size=0"
            )

    @property
    def speech_parts(self) -> SpeechParts:
        """What of this talker decodes."""
        return replace(super().speech_parts, coupling=self.coupling)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights; see :class:`Talker`."""
        super().reset_parameters(generator)
        if self.coupling is not None:
            self.coupling.reset_output()

    def copy_weights(self, source: Talker) -> None:
        """Start from the weights of a trained talker; see :class:`Talker`.

        Raises:
            UserError: If it predicts masked tokens with the help of a coupling, and this talker has none.
        """
        if self.coupling is None and isinstance(source, MaskedTalker) and source.coupling is not None:
            raise UserError(
                f"The initial talker couples the tokens of a block: give coupling_size={source.coupling.size} to the "
                "talker that starts from it, or start from one without a coupling."
            )
        super().copy_weights(source)

    def couple(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Give what :meth:`predict` reads where the tokens before each position are known.

        Args:
            hidden: Hidden states of masked positions, ``(R, S, width)``.
            tokens: What stands there, ``(R, S) int64``.

        Returns:
            ``(R, S, n)``: the hidden states, and behind them those of the coupling, if there is one.
        """
        if self.coupling is None:
            return hidden
        of_blocks = hidden.unflatten(1, (-1, self.block_size)).flatten(0, 1)
        states = self.coupling(of_blocks, tokens.unflatten(1, (-1, self.block_size)).flatten(0, 1))
        return torch.cat([hidden, states.view(*hidden.shape[:2], -1)], dim=-1)

    def predict(self, coupled: Tensor) -> Tensor:
        """Give the logits ``(..., V)`` of what :meth:`couple` gave, ``(..., n)``."""
        if self.coupling is None:
            return self.head(coupled)
        hidden, states = coupled.split([self.backbone.width, self.coupling.size], dim=-1)
        return self.head(hidden) + self.coupling.predict(states)

    def predict_masked(self, hidden: Tensor, x_t: Tensor) -> Tensor:
        """Predict masked tokens where those before them are not known, ``(R, S, V)``; see :func:`coupled_logits`.

        Args:
            hidden: Their hidden states, ``(R, S, width)``.
            x_t: Partly masked tokens in whole blocks, ``(R, S) int64``.
        """
        logits = self.head(hidden)
        if self.coupling is None:
            return logits
        blocks = [one.unflatten(1, (-1, self.block_size)).flatten(0, 1) for one in (hidden, logits, x_t)]
        coupled = coupled_logits(self.coupling.functions(), blocks[0], blocks[1], blocks[2], self.vocabulary.mask_id)
        return coupled.view_as(logits)

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
        coupled = self.couple(hidden, batch.filled)
        nll, accuracy = masked_cross_entropy(self.predict, coupled, batch.targets, batch.is_masked, int(num_masked))
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
        targets = batch.targets.flatten().index_select(0, masked)
        trajectory = teacher.unmask(batch, settings.num_steps)

        def logits_behind(tokens: Tensor) -> Tensor:
            return self.predict(self.couple(hidden, tokens).flatten(0, 1).index_select(0, masked))

        # A coupled student meets the teacher behind the teacher's tokens, and the clean tokens behind clean ones.
        clean_logits = logits_behind(batch.filled)
        student_logits = clean_logits if self.coupling is None else logits_behind(trajectory.tokens)
        terms, nll = self_distillation_terms(student_logits, trajectory.logits, targets, settings, clean_logits)
        accuracy = token_accuracy(clean_logits, targets)
        return TalkerOutput((*terms, *side_terms), nll, accuracy, batch.num_masked.sum(), batch.masked_share)

    @torch.no_grad()
    def unmask(self, batch: NoisyBatch, num_steps: int, stop_after: int | None = None) -> Trajectory:
        """Fill the masks of a batch step by step; see :func:`unmasking_trajectory`."""
        read = self.reader(batch)

        def predict(x_t: Tensor, wanted: Tensor) -> Tensor:
            hidden = read(x_t)
            if self.coupling is None:
                return self.head(hidden.flatten(0, 1).index_select(0, wanted))
            return self.predict_masked(hidden, x_t).flatten(0, 1).index_select(0, wanted)

        return unmasking_trajectory(
            predict,
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
