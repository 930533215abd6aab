"""The masked-diffusion talker (MDM)."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.filling import BlockFiller
from lightning_modules.talker.decoding.static.masked_layouts import BlockCausalProgram
from lightning_modules.talker.decoding.static.program import BlockProgram
from lightning_modules.talker.decoding.streaming import BlockDecoder, DecodedBlock
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masked.noisy_batch import NoisyBatch
from lightning_modules.talker.masking.schemes import Masking
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.attention_masks import (
    block_causal_order,
    mask_behind_committed,
    visible_in_clean_context,
    visible_up_to,
)
from lightning_modules.talker.network.backbone import TalkerBackbone


class MaskedDiffusionTalker(MaskedTalker):
    """Predicts the masked tokens of a block in parallel, a few at a time.

    Attention is full inside a block and causal across blocks; the first positions of a block carry its anchors.

    Args:
        num_codes: Size of the speech codebook.
        anchors: Projects text states and assigns them to blocks.
        backbone: Decoder layers.
        masking: Draws which positions training masks; evaluation keeps it if training moves on to another one.
        block_size: Speech tokens per block.
        clean_context: Train on ``[x_t, x_0]``, so that each noisy block attends to clean earlier blocks, exactly as
            in decoding; otherwise earlier blocks are as noisy as the block itself, as in the paper.
        num_noisy_copies: Noisy copies ``x_t``, each with a mask of its own. With clean context they share one clean
            copy, so that two score twice the positions for one and a half times the work of one.
        complementary_masks: Let each second copy mask what the one before it leaves clean; needs an even number.
        coupling_size: Width of a :class:`TokenCoupling` behind the backbone, through which the masked tokens of a block
            depend on each other; 0 predicts them independently, as the paper does.

    Reference: arXiv 2602.08607; the clean context is that of arXiv 2503.09573.
    """

    def __init__(
        self,
        num_codes: int,
        anchors: SemanticAnchors,
        backbone: TalkerBackbone,
        masking: Masking,
        block_size: int = 16,
        clean_context: bool = False,
        num_noisy_copies: int = 1,
        complementary_masks: bool = False,
        coupling_size: int = 0,
    ) -> None:
        copies = clean_context, num_noisy_copies, complementary_masks, coupling_size
        super().__init__(num_codes, anchors, backbone, masking, block_size, *copies)

    def embed(self, tokens: Tensor, anchors: Tensor) -> Tensor:
        """Embed tokens in whole blocks with their anchors in place.

        Args:
            tokens: ``(B, K * block_size) int64``.
            anchors: ``(B, K, Q, width)``.

        Returns:
            ``(B, K * block_size, width)``.
        """
        return self.embed_tokens(tokens) + self.anchors.in_place(anchors, self.block_size)

    def hidden(self, text: TextStates, x_t: Tensor, x_0: Tensor | None = None) -> Tensor:
        """Run a partly masked sequence through the backbone.

        Args:
            text: What the thinker wrote.
            x_t: Partly masked tokens in whole blocks, ``(B, L) int64``; several copies of one sequence behind each
                other, ``(B, C * L)``, if there is a clean one.
            x_0: Clean tokens for earlier blocks to be read from, ``(B, L) int64``; left out, from ``x_t``.

        Returns:
            Hidden states, ``(B, L, width)`` or ``(B, C * L, width)``.
        """
        anchors, order, positions = self.lay_out_copy(text, x_t if x_0 is None else x_0)
        if x_0 is None:
            return self.backbone(self.embed(x_t, anchors), positions, self.backbone.attention_of(visible_up_to(order)))
        num_copies = x_t.shape[1] // x_0.shape[1]
        all_tokens = torch.cat([x_t, x_0], dim=1)
        embedded = self.embed(all_tokens, anchors.repeat(1, num_copies + 1, 1, 1))
        attention = self.backbone.attention_of(visible_in_clean_context(order, num_copies))
        hidden = self.backbone(embedded, positions.repeat(num_copies + 1), attention)
        return hidden[:, : x_t.shape[1]]

    def lay_out_copy(self, text: TextStates, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the anchors ``(B, K, Q, width)``, blocks ``(L,)`` and positions ``(L,)`` of one copy ``(B, L)``."""
        num_blocks = tokens.shape[1] // self.block_size
        order = block_causal_order(num_blocks, self.block_size, tokens.device)
        return self.anchors(text, num_blocks), order, torch.arange(tokens.shape[1], device=tokens.device)

    def masked_hidden(self, batch: NoisyBatch, x_t: Tensor) -> Tensor:
        """Give the hidden states that the head predicts from; see :class:`MaskedTalker`."""
        return self.hidden(batch.text, x_t, batch.speech.x_0 if self.clean_context else None)

    def reader(self, batch: NoisyBatch) -> Callable[[Tensor], Tensor]:
        """Read the clean copy once, where there is one; see :class:`MaskedTalker`."""
        if not self.clean_context:
            return super().reader(batch)
        x_0, num_noisy = batch.speech.x_0, batch.targets.shape[1]
        num_copies = num_noisy // x_0.shape[1]
        anchors, order, positions = self.lay_out_copy(batch.text, x_0)
        visible = visible_in_clean_context(order, num_copies)
        after_clean = self.backbone.attention_of(visible.after_clean(num_noisy))
        of_clean = self.backbone.attention_of(visible.of_clean(num_noisy))
        cache = self.backbone.remember(self.embed(x_0, anchors), positions, of_clean, num_noisy)
        all_anchors, all_positions = anchors.repeat(1, num_copies, 1, 1), positions.repeat(num_copies)
        return lambda x_t: self.backbone(self.embed(x_t, all_anchors), all_positions, after_clean, cache)

    def block_program(self, max_blocks: int, decoding: Decoding) -> BlockProgram:
        """Decode a block; see :class:`AnchoredTalker`."""
        return BlockCausalProgram(self.speech_parts, decoding, max_blocks)

    def new_stepwise_decoder(self, max_blocks: int, decoding: Decoding) -> BlockDecoder:
        """Decode block by block; see :class:`AnchoredTalker`."""
        return _BlockDecoder(self, max_blocks, decoding)


class _BlockDecoder(BlockDecoder):
    """Cache of the committed blocks and the finished block that is still to be committed."""

    def __init__(self, talker: MaskedDiffusionTalker, max_blocks: int, decoding: Decoding) -> None:
        self.talker, self.fused_commit = talker, decoding.fused_commit
        self.cache = talker.backbone.new_cache(1, max_blocks * talker.block_size)
        self.device = talker.head.weight.device
        self.fill = BlockFiller(decoding, talker.block_size, talker.vocabulary.mask_id, self.device)
        self.pending: Tensor | None = None

    def positions(self, num_positions: int) -> Tensor:
        start = self.cache.num_committed
        return torch.arange(start, start + num_positions, device=self.device)

    def close_block(self) -> int:
        """Write the finished block's keys and values in a pass of their own, unless the next block does it."""
        if self.fused_commit:
            return 0
        assert self.pending is not None
        block_size = self.talker.block_size
        self.talker.backbone(self.pending, self.positions(block_size), None, self.cache)
        self.cache.commit(block_size)
        self.pending = None
        return 1

    def forward(self, embedded: Tensor) -> Tensor:
        """Run the network on the block in work, committing the pending one on the way: ``(1, block_size, width)``."""
        block_size = self.talker.block_size
        if self.pending is None:
            hidden = self.talker.backbone(embedded, self.positions(block_size), None, self.cache)
        else:
            both = torch.cat([self.pending, embedded], dim=1)
            order = block_causal_order(2, block_size, self.device)
            mask = mask_behind_committed(order, self.cache.num_committed)
            hidden = self.talker.backbone(both, self.positions(2 * block_size), mask, self.cache)[:, block_size:]
            self.cache.commit(block_size)
            self.pending = None
        return hidden

    def decode_block(self, anchors: Tensor) -> DecodedBlock:
        """Unmask one block; see :class:`BlockDecoder`."""
        talker = self.talker
        tokens, num_steps, order = self.fill(
            lambda x_t: talker.predict_masked(self.forward(talker.embed(x_t, anchors)), x_t)
        )
        self.pending = talker.embed(tokens, anchors)
        return DecodedBlock(tokens[0], num_steps, order[0])
