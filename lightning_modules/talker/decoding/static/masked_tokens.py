"""A block of a talker that predicts masked tokens: all its steps, and the commit of the block before."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

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
from lightning_modules.talker.decoding.static.steps.flat_steps import FlatReveal, FlatSteps, Reveal
from lightning_modules.talker.decoding.static.steps.progress import BlockInWork, BlockPasses, Progress
from lightning_modules.talker.decoding.unmasking import Unmasking, falling_ranks, most_confident, num_to_reveal
from lightning_modules.talker.network.decoding_network import Window
from lightning_modules.talker.network.key_value_cache import StaticCache
from lightning_modules.talker.network.token_coupling import coupled_logits


class MaskedProgram(BlockProgram):
    """Unmasks a block in steps; the first one also commits the block before.

    Subclasses lay out slots. A step is one function of tensors; with an adaptive rule or corrections a block ends when
    its tokens say so, and the host looks at a flag between steps.

    Args:
        parts: What decodes.
        decoding: How; its number of steps is given.
        max_blocks: Blocks of the longest reply.

    Attributes:
        passes: Runs the passes of a block faster than this program does, step by step.
        steps_per_look: Steps between two looks at the flag.
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
        self.passes: BlockPasses | None = None
        self.compiled_reveal: Reveal | None = None
        self.looks_inside = self.looks_inside or not self.is_one_function
        # A GPU would idle while the host looks; what is done twice changes nothing.
        self.steps_per_look = 1 if self.device.type == "cpu" else 2

    @property
    def is_one_function(self) -> bool:
        """Not with an adaptive rule or corrections, for which the host looks at the device between steps."""
        return not self.unmasking.is_adaptive and self.refinement is None

    @property
    def commits_itself(self) -> bool:
        """With corrections, of which the last writes what it leaves as it is; see :class:`BlockProgram`."""
        return self.refinement is not None

    @property
    def num_first_steps(self) -> int:
        """Steps that a block takes whatever its tokens are."""
        return 1 if self.unmasking.is_adaptive else self.draft_steps

    @property
    def steps_per_look_at_draft(self) -> int:
        """One where another step would draw noise that a later block draws, or take a step from the corrections."""
        counts = self.sampler.temperature > 0 or self.refinement is not None
        return 1 if counts else self.steps_per_look

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
    def beside(self, anchors: Tensor, carry: Carry) -> Tensor:
        """Give what the block's own slots read beside its tokens, ``(B, ...)``."""

    @abstractmethod
    def embed_block(self, tokens: Tensor, beside: Tensor) -> Tensor:
        """Embed the block's own slots, ``(B, block_size, width)``."""

    @abstractmethod
    def carry_of(self, tokens: Tensor, beside: Tensor, is_committed: bool) -> Carry:
        """Give what a finished block hands on."""

    def __call__(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None = None,
    ) -> Block:
        """Fill a block; see :class:`BlockProgram`."""
        passes = self.passes or self
        progress, work = passes.start(anchors, carry, caches, place, noise)
        num_forwards, draft, is_settled = self.num_first_steps, None, False
        while num_forwards < self.draft_steps and not self._is_filled(progress, num_forwards):
            drawn = None if noise is None else noise[num_forwards]
            progress, num_forwards = passes.unmask_more(progress, work, num_forwards, drawn), num_forwards + 1
        if self.refinement is not None:
            draft, num_drafting = progress.tokens.clone(), num_forwards
            while num_forwards < self.num_steps and not is_settled:
                progress, num_forwards = passes.correct(progress, work, num_forwards), num_forwards + 1
                is_settled = self._is_settled(progress, num_forwards, num_drafting)
        # The last correcting pass has written the keys and values of these very tokens.
        num_committed = work.num_lead + self.parts.block_size * is_settled
        handed_on = self.carry_of(progress.tokens, work.beside, is_settled)
        return Block(progress.tokens, progress.order, handed_on, num_committed, num_forwards, draft)

    def start(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None,
    ) -> tuple[Progress, BlockInWork]:
        """Lay a block out, and take its first steps; see :class:`BlockPasses`."""
        lead, first, work = self.open(anchors, carry, caches, place)
        return self.draft(lead, first, work, noise), work

    def open(
        self, anchors: Tensor, carry: Carry, caches: Sequence[StaticCache], place: Place
    ) -> tuple[Tensor, Window, BlockInWork]:
        """Give what the first pass commits, embedded, its window over lead and block, and what all passes share."""
        lead, size, causal = self.lead(anchors, carry), self.parts.block_size, None
        (first,), opened = self.windows(place, *self.lay_out(carry)), caches[0].open(place.num_keys)
        rest, num_lead = first.last(size), lead.shape[1]
        if self.refinement is not None:
            causal = rest._replace(mask=self.mask(place, self.block_offsets + (num_lead + 1)))
        return lead, first, BlockInWork(self.beside(anchors, carry), rest, causal, opened, num_lead)

    def draft(self, lead: Tensor, first: Window, work: BlockInWork, noise: NoiseOfSteps | None) -> Progress:
        """Take the first steps from a block of masks: the first one of an adaptive rule, or all."""
        tokens = torch.full((len(lead), self.parts.block_size), self.parts.mask_id, device=self.device)
        order = torch.zeros_like(tokens)
        if self.unmasking.is_adaptive:
            logits = self.masked_logits(tokens, work, first, lead)
            reveal = self.compiled_reveal or self.reveal
            return reveal(logits, Progress(tokens, order), 0, None if noise is None else noise[0])
        is_revealed = torch.zeros_like(tokens, dtype=torch.bool)
        num_masked, last = tokens.shape[1], self.draft_steps - 1
        for step in range(last):
            drawn = None if noise is None else noise[step]
            logits = self.masked_logits(tokens, work, work.rest if step else first, None if step else lead)
            candidates, confidence = self.sampler.choose_with_confidence(logits, drawn)
            ranks = falling_ranks(confidence.masked_fill(is_revealed, -torch.inf))
            num_revealed = num_to_reveal(num_masked, self.draft_steps - step)
            chosen = ranks < num_revealed
            tokens, order = torch.where(chosen, candidates, tokens), order.masked_fill(chosen, step)
            is_revealed = is_revealed | chosen
            num_masked -= num_revealed
        # All that is left is revealed in the last step, however sure the network is of it.
        logits = self.masked_logits(tokens, work, work.rest if last else first, None if last else lead)
        candidates = self.sampler.choose(logits, None if noise is None else noise[last])
        return Progress(torch.where(is_revealed, tokens, candidates), order.masked_fill(~is_revealed, last))

    def unmask_more(self, progress: Progress, work: BlockInWork, step: int | Tensor, noise: Tensor | None) -> Progress:
        """Take a further step of an adaptive rule; see :class:`BlockPasses`."""
        logits = self.masked_logits(progress.tokens, work, work.rest)
        return (self.compiled_reveal or self.reveal)(logits, progress, step, noise)

    def reveal(self, logits: Tensor, progress: Progress, step: int | Tensor, noise: Tensor | None) -> Progress:
        """Reveal a step's share of the masked tokens, and what an adaptive rule finds easy.

        Args:
            logits: ``(B, block_size, V)``.
            progress: What the step before gave.
            step: Its number, from 0.
            noise: Of this step; None if nothing is drawn.
        """
        tokens, order, mask_id = progress.tokens, progress.order, self.parts.mask_id
        is_masked = tokens == mask_id
        candidates, confidence = self.sampler.choose_with_confidence(logits, noise)
        num_revealed = num_to_reveal(is_masked.sum(dim=1, keepdim=True), self.draft_steps - step)
        surest = most_confident(confidence, is_masked, num_revealed)
        revealed = surest | self.unmasking.easy(logits, confidence, is_masked)
        tokens = torch.where(revealed, candidates, tokens)
        return Progress(tokens, torch.where(revealed, step, order), (tokens == mask_id).any())

    def correct(self, progress: Progress, work: BlockInWork, step: int | Tensor) -> Progress:
        """Replace the first token of each row that is not the most probable next one; see :class:`BlockPasses`."""
        assert work.causal is not None
        best = self.predict(self.hidden(progress.tokens, work, work.causal)).argmax(dim=-1)
        wrong = best != progress.tokens
        is_first = wrong & (wrong.cumsum(dim=1) == 1)
        tokens = torch.where(is_first, best, progress.tokens)
        return Progress(tokens, torch.where(is_first, step, progress.order), wrong.any())

    def masked_logits(self, tokens: Tensor, work: BlockInWork, window: Window, lead: Tensor | None = None) -> Tensor:
        """Predict the block's masked tokens, ``(B, block_size, V)``; all are masked in the pass with a lead."""
        hidden = self.hidden(tokens, work, window, lead)
        logits = self.predict(hidden)
        return logits if self.couple is None else self.couple(hidden, logits, tokens if lead is None else None)

    def hidden(self, tokens: Tensor, work: BlockInWork, window: Window, lead: Tensor | None = None) -> Tensor:
        """Run the network: the block's hidden states, ``(B, block_size, width)``."""
        embedded = self.embed_block(tokens, work.beside)
        if lead is not None:
            embedded = torch.cat([lead, embedded], dim=1)
        return self.networks[0](embedded, window, work.opened, self.parts.block_size)

    def compiled(self, compiler: Callable[[FlatFunction], FlatFunction]) -> BlockFunction:
        """Compile a whole block, or each of its steps; where tokens are coupled, pass and coupling by themselves.

        A coupling is a chain of as many small products as a block has tokens. Several of them, one per step, would take
        minutes of compilation.
        """
        coupling = self.parts.coupling
        if coupling is None and self.is_one_function:
            return super().compiled(compiler)
        self.write_out()
        whole = copy.copy(self)
        if coupling is not None:
            self.networks = [FlatNetwork(one, compiler) for one in self.networks]  # type: ignore[misc]
            self.couple = FlatCoupling(coupling.written_out(), self.parts.mask_id, compiler)
            self.compiled_reveal = FlatReveal(whole, compiler) if self.unmasking.is_adaptive else None
        if not self.is_one_function:
            self.passes = FlatSteps(whole, compiler, None if coupling is None else self)
        return self

    def _is_filled(self, progress: Progress, num_steps: int) -> bool:
        """Look, at times, whether nothing is masked behind the first steps."""
        is_time = self.looks_inside and num_steps % self.steps_per_look_at_draft == 0
        return is_time and not bool(progress.is_open)

    def _is_settled(self, progress: Progress, num_steps: int, num_drafting: int) -> bool:
        """Look, at times and behind the last step, whether a correcting pass changed nothing in any row."""
        is_time = (num_steps - num_drafting) % self.steps_per_look == 0 or num_steps == self.num_steps
        return self.looks_inside and is_time and not bool(progress.is_open)
