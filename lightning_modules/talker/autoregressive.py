"""The next-token-prediction talker (NTP), the autoregressive baseline."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.base import TalkerOutput
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.static.next_tokens import NextTokenProgram
from lightning_modules.talker.decoding.static.program import BlockProgram
from lightning_modules.talker.decoding.streaming import BlockDecoder, DecodedBlock
from lightning_modules.talker.losses import LossTerm, masked_cross_entropy
from lightning_modules.talker.masking.schemes import RowGenerators
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.attention_masks import (
    anchored_causal_order,
    mask_behind_committed,
    visible_up_to,
)
from lightning_modules.talker.network.backbone import TalkerBackbone


class AutoregressiveTalker(AnchoredTalker):
    """Predicts one speech token after the other.

    A block's anchors stand in slots of their own ahead of its tokens, so that all of them are visible at its
    first token, as they are to a talker that predicts the block as a whole. The slot of token ``p`` reads
    token ``p - 1``; slots share the rotary positions of the speech positions that they belong to.

    Reference: arXiv 2602.08607, NTP baseline.
    """

    @property
    def supported_steps(self) -> tuple[int, ...]:
        """One step per token."""
        return (self.block_size,)

    def slot_positions(self, num_blocks: int, device: torch.device) -> Tensor:
        """Rotary position of each slot, ``(num_blocks * (Q + block_size),) int64``."""
        starts = torch.arange(num_blocks, device=device) * self.block_size
        offsets = [torch.arange(n, device=device) for n in (self.anchors.anchors_per_block, self.block_size)]
        return (starts[:, None] + torch.cat(offsets)).flatten()

    def embed_slots(self, anchors: Tensor, previous_tokens: Tensor) -> Tensor:
        """Embed blocks as ``[anchor slots, token slots]``.

        Args:
            anchors: ``(B, K, Q, width)``.
            previous_tokens: The token before each position, ``(B, K, n) int64``.

        Returns:
            ``(B, K * (Q + n), width)``.
        """
        anchor_slots = anchors + self.embed_tokens.weight[self.vocabulary.mask_id]
        return torch.cat([anchor_slots, self.embed_tokens(previous_tokens)], dim=2).flatten(1, 2)

    def causal_hidden(self, text: TextStates, x_0: Tensor) -> Tensor:
        """Give the hidden states that predict each token from those before it and the anchors up to its block.

        Args:
            text: What the thinker wrote.
            x_0: Tokens in whole blocks, ``(B, L) int64``.

        Returns:
            What the head reads, ``(B, L, width)``.
        """
        num_blocks = x_0.shape[1] // self.block_size
        order = anchored_causal_order(num_blocks, self.block_size, self.anchors.anchors_per_block, x_0.device)
        positions = self.slot_positions(num_blocks, x_0.device)
        attention = self.backbone.attention_of(visible_up_to(order))
        return self.of_tokens(self.backbone(self.slots(text, x_0), positions, attention), num_blocks)

    def previous_tokens(self, tokens: Tensor) -> Tensor:
        """Give what the slot of each token reads, the token before it and BOS before the first: ``(B, L)`` as given."""
        begin = tokens.new_full((tokens.shape[0], 1), self.vocabulary.bos_id)
        return torch.cat([begin, tokens[:, :-1]], dim=1)

    def slots(self, text: TextStates, x_0: Tensor) -> Tensor:
        """Embed whole blocks as slots, ``(B, K * (Q + block_size), width)``; arguments as of :meth:`causal_hidden`."""
        num_blocks = x_0.shape[1] // self.block_size
        previous = self.previous_tokens(x_0).unflatten(1, (num_blocks, self.block_size))
        return self.embed_slots(self.anchors(text, num_blocks), previous)

    def of_tokens(self, hidden: Tensor, num_blocks: int) -> Tensor:
        """Keep the token slots of ``(B, K * (Q + block_size), width)``: ``(B, K * block_size, width)``."""
        num_anchors = self.anchors.anchors_per_block
        return hidden.unflatten(1, (num_blocks, num_anchors + self.block_size))[:, :, num_anchors:].flatten(1, 2)

    def forward(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator | RowGenerators
    ) -> TalkerOutput:
        """Next-token cross-entropy over the speech tokens and the EOS that ends them; see :class:`Talker`."""
        speech = self.lay_out(units, unit_lengths)
        is_scored = speech.is_up_to_first_eos
        loss, accuracy = masked_cross_entropy(self.head, self.causal_hidden(text, speech.x_0), speech.x_0, is_scored)
        num_scored = is_scored.sum()
        terms = (LossTerm(loss, num_scored),)
        return TalkerOutput(terms, loss.detach(), accuracy, num_scored, loss.new_zeros(()))

    def check(self, decoding: Decoding) -> None:
        """Refuse rules for masks, too; see :class:`Talker`."""
        super().check(decoding)
        if decoding.unmasking is not None or decoding.refinement is not None:
            raise UserError(
                f"decoding of {decoding.talker}: this talker predicts one token after the other and has no masks to "
                "reveal nor a draft to refine; leave unmasking and refinement out"
            )

    def block_program(self, max_blocks: int, decoding: Decoding) -> BlockProgram:
        """Decode a block; see :class:`AnchoredTalker`."""
        return NextTokenProgram(self.speech_parts, decoding, max_blocks)

    def new_stepwise_decoder(self, max_blocks: int, decoding: Decoding) -> BlockDecoder:
        """Decode token by token; see :class:`AnchoredTalker`."""
        return StepDecoder(self, [self.backbone], max_blocks, decoding)


class StepDecoder(BlockDecoder):
    """Caches of a talker's layers, and the tokens that they have not read yet.

    Args:
        talker: Gives embeddings and the head.
        layers: Its backbone, which predicts the next token, then one for each token behind it; each reads the hidden
            states of the one before.
        max_blocks: Room in the caches.
        decoding: How tokens are chosen.
    """

    def __init__(
        self, talker: AutoregressiveTalker, layers: Sequence[TalkerBackbone], max_blocks: int, decoding: Decoding
    ) -> None:
        self.talker, self.layers = talker, layers
        self.device = talker.head.weight.device
        self.sampler = decoding.sampler or TokenSampler()
        self.generator = torch.Generator(self.device).manual_seed(decoding.seed)
        capacity = max_blocks * (talker.anchors.anchors_per_block + talker.block_size)
        self.caches = [layer.new_cache(1, capacity) for layer in layers]
        self.unread = torch.tensor([talker.vocabulary.bos_id], device=self.device)
        self.offsets = torch.arange(talker.block_size, device=self.device)
        self.first_position = 0

    def decode_block(self, anchors: Tensor) -> DecodedBlock:
        """Predict ``len(layers)`` tokens per step, up to the first EOS; see :class:`BlockDecoder`."""
        talker = self.talker
        tokens, num_forwards, num_read = self._first_step(anchors), 1, 1
        while not (tokens == talker.vocabulary.eos_id).any() and len(tokens) < talker.block_size:
            self.unread = tokens[num_read - 1 :]
            order = self.offsets[: len(self.unread)]
            positions = self.first_position + num_read + order
            predicted = self._step(talker.embed_tokens(self.unread[None]), positions, order)
            num_read += len(self.unread)
            num_forwards += 1
            tokens = torch.cat([tokens, predicted])
        tokens = tokens[: talker.block_size]
        self.unread = tokens[num_read - 1 :]
        self.first_position += talker.block_size
        return DecodedBlock(tokens, num_forwards)

    def _first_step(self, anchors: Tensor) -> Tensor:
        """Read ``[late slots of the block before, anchor slots, first slot]``."""
        talker, num_anchors = self.talker, self.talker.anchors.anchors_per_block
        # All unread tokens but the last belong to slots of the block before.
        late, first = self.unread[None, :-1], self.unread[None, None, -1:]
        slots = torch.cat([talker.embed_tokens(late), talker.embed_slots(anchors, first)], dim=1)
        num_late = late.shape[1]
        positions = torch.cat([self.offsets[:num_late] - num_late, self.offsets[:num_anchors], self.offsets[:1]])
        order = torch.arange(num_late + num_anchors + 1, device=self.device)
        order[num_late:-1] = num_late
        return self._step(slots, self.first_position + positions, order)

    def _step(self, slots: Tensor, positions: Tensor, order: Tensor) -> Tensor:
        """Run slots through all layers; give a token from each layer, ``(len(layers),) int64``."""
        mask = mask_behind_committed(order, self.caches[0].num_committed) if len(order) > 1 else None
        hidden, predicted = slots, []
        for layer, cache in zip(self.layers, self.caches, strict=True):
            hidden = layer(hidden, positions, mask, cache)
            cache.commit(slots.shape[1])
            predicted.append(self.sampler(self.talker.head(hidden[:, -1]), self.generator)[0])
        return torch.cat(predicted)
