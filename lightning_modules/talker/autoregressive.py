"""The next-token-prediction talker (NTP), the autoregressive baseline."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lightning_modules.talker.anchors import TextStates
from lightning_modules.talker.attention_masks import anchored_causal_order, mask_from_order
from lightning_modules.talker.base import Talker, TalkerOutput
from lightning_modules.talker.losses import masked_cross_entropy
from lightning_modules.talker.sampling import TokenSampler
from lightning_modules.talker.streaming import AnchorReader, SpeechChunk, TextState, cut_at_eos


class AutoregressiveTalker(Talker):
    """Predicts one speech token after the other.

    A block's anchors stand in slots of their own ahead of its tokens, so that all of them are visible at its
    first token, as they are to a talker that predicts the block as a whole. The slot of token ``p`` reads
    token ``p - 1``; slots share the rotary positions of the speech positions that they belong to.

    Reference: arXiv 2602.08607, NTP baseline.
    """

    @property
    def supported_steps(self) -> tuple[int, ...]:
        """One step a token."""
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

    def logits(self, text: TextStates, x_0: Tensor) -> Tensor:
        """Predict each token from those before it and the anchors up to its block.

        Args:
            text: What the thinker wrote.
            x_0: Tokens in whole blocks, ``(B, L) int64``.

        Returns:
            ``(B, L, V)``.
        """
        return self.head(self.causal_hidden(text, x_0))

    def causal_hidden(self, text: TextStates, x_0: Tensor) -> Tensor:
        """Give the hidden states that :meth:`logits` predicts from, ``(B, L, width)``."""
        num_blocks = x_0.shape[1] // self.block_size
        order = anchored_causal_order(num_blocks, self.block_size, self.anchors.anchors_per_block, x_0.device)
        positions = self.slot_positions(num_blocks, x_0.device)
        return self.of_tokens(
            self.backbone(self.slots(text, x_0), positions, mask_from_order(order, order)), num_blocks
        )

    def slots(self, text: TextStates, x_0: Tensor) -> Tensor:
        """Embed whole blocks as slots, ``(B, K * (Q + block_size), width)``; arguments as of :meth:`logits`."""
        num_blocks = x_0.shape[1] // self.block_size
        begin = x_0.new_full((x_0.shape[0], 1), self.vocabulary.bos_id)
        previous = torch.cat([begin, x_0[:, :-1]], dim=1).unflatten(1, (num_blocks, self.block_size))
        return self.embed_slots(self.anchors(text, num_blocks), previous)

    def of_tokens(self, hidden: Tensor, num_blocks: int) -> Tensor:
        """Keep the token slots of ``(B, K * (Q + block_size), width)``: ``(B, K * block_size, width)``."""
        num_anchors = self.anchors.anchors_per_block
        return hidden.unflatten(1, (num_blocks, num_anchors + self.block_size))[:, :, num_anchors:].flatten(1, 2)

    def forward(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator
    ) -> TalkerOutput:
        """Next-token cross-entropy over the speech tokens and the EOS that ends them; see :class:`Talker`."""
        speech = self.lay_out(units, unit_lengths)
        is_scored = speech.is_up_to_first_eos
        loss, accuracy = masked_cross_entropy(self.head, self.causal_hidden(text, speech.x_0), speech.x_0, is_scored)
        return TalkerOutput(loss, loss.detach(), accuracy, is_scored.sum(), loss.new_zeros(()))

    @torch.no_grad()
    def stream(
        self,
        text: Iterable[TextState],
        max_blocks: int,
        num_steps: int | None = None,
        sampler: TokenSampler | None = None,
    ) -> Iterator[SpeechChunk]:
        """Decode token by token, a chunk a block; see :class:`Talker`."""
        self.resolve_num_steps(num_steps)
        sampler = sampler or TokenSampler()
        reader = AnchorReader(self.anchors, text)
        num_anchors = self.anchors.anchors_per_block
        cache = self.backbone.new_cache(1, max_blocks * (num_anchors + self.block_size))
        device = self.head.weight.device
        order = anchored_causal_order(1, self.block_size, num_anchors, device)[: num_anchors + 1]
        positions = self.slot_positions(max_blocks, device).unflatten(0, (max_blocks, -1))
        previous = torch.tensor([[[self.vocabulary.bos_id]]], device=device)
        for block in range(max_blocks):
            first_mask = torch.ones(
                num_anchors + 1, cache.num_committed + num_anchors + 1, dtype=torch.bool, device=device
            )
            first_mask[:, cache.num_committed :] = mask_from_order(order, order)
            slots = self.embed_slots(reader.next_block(), previous)
            mask: Tensor | None = first_mask
            tokens: list[Tensor] = []
            start = 0
            while len(tokens) < self.block_size:
                hidden = self.backbone(slots, positions[block, start : start + slots.shape[1]], mask, cache)
                cache.commit(slots.shape[1])
                start += slots.shape[1]
                token, _ = sampler(self.head(hidden[:, -1]))
                tokens.append(token)
                previous = token[None, None]
                if int(token) == self.vocabulary.eos_id:
                    break
                slots, mask = self.embed_tokens(token)[None], None
            codes, ended = cut_at_eos(torch.cat(tokens), self.vocabulary.eos_id)
            is_last = ended or block == max_blocks - 1
            yield SpeechChunk(codes, len(tokens), ended, is_last)
            if is_last:
                return
