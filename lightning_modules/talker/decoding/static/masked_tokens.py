"""A block of a talker that predicts masked tokens: all its steps, and the commit of the block before."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.sampling import NoiseOfSteps
from lightning_modules.talker.decoding.static.passes import Couple, FlatCoupling, FlatNetwork
from lightning_modules.talker.decoding.static.program import (
    Block,
    BlockFunction,
    BlockProgram,
    Carry,
    FlatFunction,
    Place,
    SpeechParts,
)
from lightning_modules.talker.decoding.unmasking import Unmasking, most_confident, num_to_reveal
from lightning_modules.talker.network.decoding_network import Window
from lightning_modules.talker.network.key_value_cache import OpenLayer, StaticCache
from lightning_modules.talker.network.token_coupling import coupled_logits


class BlockInWork(NamedTuple):
    """What the passes of one block share.

    Attributes:
        lead: Slots that the first pass commits ahead of the block, embedded, ``(B, n, width)``.
        beside: What is added to the block's own slots, ``(B, block_size, width)``; None if nothing is.
        carry: What the block before handed on.
        first: Window of the first pass, lead and block.
        rest: Window of the others, the block alone.
        opened: The cache.
    """

    lead: Tensor
    beside: Tensor | None
    carry: Carry
    first: Window
    rest: Window
    opened: list[OpenLayer]


class MaskedProgram(BlockProgram):
    """Unmasks a block in steps; the first one also commits the block before.

    Subclasses lay out slots.

    Args:
        parts: What decodes.
        decoding: How; its number of steps is given.
        max_blocks: Blocks of the longest reply.
    """

    def __init__(self, parts: SpeechParts, decoding: Decoding, max_blocks: int) -> None:
        super().__init__(parts, decoding, max_blocks)
        self.unmasking, self.refinement = decoding.unmasking or Unmasking(), decoding.refinement
        draft_steps = self.num_steps if self.refinement is None else self.refinement.draft_steps
        self.draft_steps = min(draft_steps, self.num_steps)
        self.block_offsets = torch.arange(parts.block_size, device=self.device)
        coupling = parts.coupling
        self.couple: Couple | None = None
        if coupling is not None:
            functions = coupling.functions(self.networks[0].cast_to)
            self.couple = partial(coupled_logits, functions, mask_id=parts.mask_id)
        # A GPU would idle while the host looks; what is done twice changes nothing.
        self.steps_per_look = 1 if self.device.type == "cpu" else 2

    @property
    def is_one_function(self) -> bool:
        """Not with an adaptive rule or corrections, for which the host looks at the device between steps."""
        return not self.unmasking.is_adaptive and self.refinement is None

    @property
    def has_order_noise(self) -> bool:
        """Whether the order of unmasking is disturbed; see :class:`BlockProgram`."""
        return self.unmasking.order_temperature > 0

    @property
    def rows_of_noise(self) -> int:
        """All positions of a block; see :class:`BlockProgram`."""
        return self.parts.block_size

    @abstractmethod
    def lead(self, anchors: Tensor, carry: Carry) -> Tensor:
        """Embed what the first pass commits, ``(B, n, width)``."""

    @abstractmethod
    def lay_out(self, carry: Carry) -> tuple[Tensor, Tensor]:
        """Give offset and reach of each slot of lead and block; see :meth:`BlockProgram.windows`."""

    @abstractmethod
    def beside(self, anchors: Tensor) -> Tensor | None:
        """Give what is added to the block's own slots, ``(B, block_size, width)``."""

    @abstractmethod
    def read(self, tokens: Tensor, carry: Carry) -> Tensor:
        """Give the tokens that the block's own slots read, ``(B, block_size) int64``."""

    @abstractmethod
    def carry_of(self, tokens: Tensor, work: BlockInWork, is_committed: bool) -> Carry:
        """Give what a finished block hands on."""

    def embed_block(self, tokens: Tensor, work: BlockInWork) -> Tensor:
        """Embed the block's own slots, ``(B, block_size, width)``."""
        embedded = self.embed(self.read(tokens, work.carry))
        return embedded if work.beside is None else embedded + work.beside

    def __call__(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None = None,
    ) -> Block:
        """Fill a block; see :class:`BlockProgram`."""
        lead, size = self.lead(anchors, carry), self.parts.block_size
        (first,), opened = self.windows(place, *self.lay_out(carry)), caches[0].open(place.num_keys)
        work = BlockInWork(lead, self.beside(anchors), carry, first, first.last(size), opened)
        tokens, order, num_forwards = self.unmask(work, noise)
        num_committed, is_settled, draft = lead.shape[1], False, None if self.refinement is None else tokens
        if self.refinement is not None and num_forwards < self.num_steps:
            behind_lead = Place(place.start + num_committed, place.position, place.num_keys)
            (causal,) = self.windows(behind_lead, self.block_offsets, self.block_offsets + 1)
            tokens, order, num_forwards, is_settled = self.correct(
                work._replace(rest=causal), tokens, order, num_forwards
            )
        # The last correcting pass has written the keys and values of these very tokens.
        num_committed += size * is_settled
        return Block(tokens, order, self.carry_of(tokens, work, is_settled), num_committed, num_forwards, draft)

    def masked_logits(self, tokens: Tensor, work: BlockInWork, step: int) -> Tensor:
        """Predict the block's masked tokens, ``(B, block_size, V)``."""
        hidden = self.hidden(tokens, work, step)
        logits = self.predict(hidden)
        # Before the first step nothing is revealed.
        return logits if self.couple is None else self.couple(hidden, logits, tokens if step else None)

    def compiled(self, compiler: Callable[[FlatFunction], FlatFunction]) -> BlockFunction:
        """Compile a whole block; where tokens are coupled, pass and coupling by themselves; see :class:`BlockProgram`.

        A coupling is a chain of as many small products as a block has tokens. Several of them, one per step, would take
        minutes of compilation.
        """
        if self.parts.coupling is None:
            return super().compiled(compiler)
        self.write_out()
        self.networks = [FlatNetwork(one, compiler) for one in self.networks]  # type: ignore[misc]
        self.couple = FlatCoupling(self.parts.coupling.written_out(), self.parts.mask_id, compiler)
        return self

    def hidden(self, tokens: Tensor, work: BlockInWork, step: int) -> Tensor:
        """Run the network: the block's hidden states, ``(B, block_size, width)``."""
        size, embedded = self.parts.block_size, self.embed_block(tokens, work)
        if step == 0:
            embedded = torch.cat([work.lead, embedded], dim=1)
        return self.networks[0](embedded, work.rest if step else work.first, work.opened, size)

    def unmask(self, work: BlockInWork, noise: NoiseOfSteps | None) -> tuple[Tensor, Tensor, int]:
        """Fill a block of masks: its tokens, the step that revealed each, the steps taken."""
        if self.unmasking.is_adaptive:
            return self._unmask_adaptively(work, noise)
        tokens = self._masks(work)
        order, is_revealed = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
        num_masked, last = tokens.shape[1], self.draft_steps - 1
        for step in range(last):
            drawn = None if noise is None else noise[step]
            candidates, confidence = self.sampler.choose_with_confidence(self.masked_logits(tokens, work, step), drawn)
            ranked_by = self.unmasking.disturb(confidence, drawn).masked_fill(is_revealed, -torch.inf)
            num_revealed = num_to_reveal(num_masked, self.draft_steps - step)
            chosen = ranked_by.argsort(dim=-1, descending=True, stable=True).narrow(1, 0, num_revealed)
            tokens = tokens.scatter(1, chosen, candidates.gather(1, chosen))
            order, is_revealed = order.scatter(1, chosen, step), is_revealed.scatter(1, chosen, True)
            num_masked -= num_revealed
        # All that is left is revealed in the last step, however sure the network is of it.
        candidates = self.sampler.choose(self.masked_logits(tokens, work, last), None if noise is None else noise[last])
        tokens, order = torch.where(is_revealed, tokens, candidates), order.masked_fill(~is_revealed, last)
        return tokens, order, self.draft_steps

    def correct(
        self, work: BlockInWork, tokens: Tensor, order: Tensor, num_done: int
    ) -> tuple[Tensor, Tensor, int, bool]:
        """Replace the first token of each row that is not the most probable next one, step by step.

        Returns:
            Tokens, order, steps taken in all, and whether the last one changed nothing in any row.
        """
        for step in range(num_done, self.num_steps):
            best = self.predict(self.hidden(tokens, work, step)).argmax(dim=-1)
            wrong = best != tokens
            if self._looks_at(step + 1 - num_done, step + 1) and not bool(wrong.any()):
                return tokens, order, step + 1, True
            is_first = wrong & (wrong.cumsum(dim=1) == 1)
            tokens, order = torch.where(is_first, best, tokens), order.masked_fill(is_first, step)
        return tokens, order, self.num_steps, False

    def _unmask_adaptively(self, work: BlockInWork, noise: NoiseOfSteps | None) -> tuple[Tensor, Tensor, int]:
        tokens = self._masks(work)
        order, is_masked = torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool)
        for step in range(self.draft_steps):
            drawn, logits = None if noise is None else noise[step], self.masked_logits(tokens, work, step)
            candidates, confidence = self.sampler.choose_with_confidence(logits, drawn)
            num_revealed = num_to_reveal(is_masked.sum(dim=1, keepdim=True), self.draft_steps - step)
            surest = most_confident(self.unmasking.disturb(confidence, drawn), is_masked, num_revealed)
            revealed = surest | self.unmasking.easy(logits, confidence, is_masked)
            tokens, order = torch.where(revealed, candidates, tokens), order.masked_fill(revealed, step)
            is_masked = is_masked & ~revealed
            if self._looks_at(step + 1, step + 1) and not bool(is_masked.any()):
                return tokens, order, step + 1
        return tokens, order, self.draft_steps

    def _looks_at(self, num_steps: int, num_passes: int) -> bool:
        """Tell whether the host looks at the device behind a step; behind the last one there is nothing to save."""
        return num_steps % self.steps_per_look == 0 or num_passes == self.num_steps

    def _masks(self, work: BlockInWork) -> Tensor:
        shape = len(work.lead), self.parts.block_size
        return torch.full(shape, self.parts.mask_id, device=self.device)
