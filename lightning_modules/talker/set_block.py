"""A masked-diffusion talker that reads the finished past causally, and so can grow out of an NTP talker."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.number_checks import require_at_least
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.autoregressive import AutoregressiveTalker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.filling import BlockFiller
from lightning_modules.talker.decoding.static.masked_layouts import SetBlockProgram
from lightning_modules.talker.decoding.static.program import BlockProgram
from lightning_modules.talker.decoding.streaming import BlockDecoder, DecodedBlock
from lightning_modules.talker.losses import LossTerm, masked_cross_entropy
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masked.noisy_batch import NoisyBatch
from lightning_modules.talker.masking.noisy_blocks import DrawnBlocks
from lightning_modules.talker.masking.schemes import Masking, RowGenerators
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.attention import CausalContextAttention
from lightning_modules.talker.network.attention_masks import mask_behind_committed
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.network.transfers import send_to


class SetBlockTalker(MaskedTalker, AutoregressiveTalker):
    """An autoregressive talker that also predicts the masked tokens of a block in parallel, a few at a time.

    It keeps the layout of :class:`AutoregressiveTalker` (anchor slots ahead of a block's tokens, the slot of token
    ``p`` reads token ``p - 1``), so that all that an NTP talker has learned is of use from the first step. Earlier
    blocks are clean and causal; the block in work is masked and attends to all of itself, one slot per token and no
    anchors of its own: it reads those of the clean copy, which depend on the past alone.

    Args:
        num_codes: Size of the speech codebook.
        anchors: Projects text states and assigns them to blocks.
        backbone: Decoder layers.
        masking: Draws which positions training masks; evaluation keeps it if training moves on to another one.
        block_size: Speech tokens per block.
        num_noisy_copies: Noisy copies ``x_t``, each with a mask of its own, that share one clean copy.
        complementary_masks: Let each second copy mask what the one before it leaves clean; needs an even number.
        noisy_blocks: Draws which blocks training predicts, in place of whole noisy copies, which evaluation keeps.
        next_token_weight: Weight of the next-token loss on the clean copy, which costs no pass of its own; 0 leaves
            the output head out.
        coupling_size: Width of a :class:`TokenCoupling` behind the backbone, through which the masked tokens of a block
            depend on each other; 0 predicts them independently, as the paper does.

    Raises:
        UserError: If there is no noisy copy, or the weight is negative.

    Reference: arXiv 2509.04185 (set block decoding); arXiv 2602.08607 for anchors and unmasking.
    """

    def __init__(
        self,
        num_codes: int,
        anchors: SemanticAnchors,
        backbone: TalkerBackbone,
        masking: Masking,
        block_size: int = 16,
        num_noisy_copies: int = 1,
        complementary_masks: bool = False,
        next_token_weight: float = 1.0,
        noisy_blocks: DrawnBlocks | None = None,
        coupling_size: int = 0,
    ) -> None:
        copies = num_noisy_copies, complementary_masks, coupling_size
        super().__init__(num_codes, anchors, backbone, masking, block_size, True, *copies)
        require_at_least(0, next_token_weight=next_token_weight)
        self.next_token_weight, self.noisy_blocks = next_token_weight, noisy_blocks

    def corrupt(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator | RowGenerators
    ) -> NoisyBatch:
        """Draw noisy blocks in training, if told how, otherwise whole noisy copies; see :class:`MaskedTalker`."""
        if self.noisy_blocks is None or not self.training:
            return super().corrupt(text, units, unit_lengths, generator)
        speech, size = self.lay_out(units, unit_lengths), self.block_size
        drawn = self.noisy_blocks(speech.num_own_blocks, size, self.masking, generator)
        device, mask_id = speech.x_0.device, self.vocabulary.mask_id
        targets = speech.x_0.gather(1, send_to(device, drawn.positions(size)))
        num_masked = drawn.is_masked.unflatten(1, (-1, size)).sum(dim=-1)
        starts, is_masked = send_to(device, drawn.starts), send_to(device, drawn.is_masked)
        return NoisyBatch(text, speech, targets, is_masked, num_masked, mask_id, targets, starts)

    def hidden(self, text: TextStates, x_t: Tensor, x_0: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run noisy copies and the clean one through the backbone.

        Args:
            text: What the thinker wrote.
            x_t: Partly masked tokens in whole blocks, several copies behind each other, ``(B, C * L) int64``.
            x_0: Clean tokens, ``(B, L) int64``.
            starts: First position of each noisy block, ``(B, N) int64``, if these are no whole copies.

        Returns:
            Hidden states of the noisy copies, ``(B, C * L, width)``, from which a token is predicted given the rest of
            its block, and of the clean one, ``(B, L, width)``, from which it is predicted given its past.
        """
        num_blocks = x_0.shape[1] // self.block_size
        noisy, noisy_positions = self.noisy_slots(x_t, x_0, starts)
        slots = torch.cat([noisy, self.slots(text, x_0)], dim=1)
        clean_positions = self.slot_positions(num_blocks, x_0.device).expand(*noisy_positions.shape[:-1], -1)
        positions = torch.cat([noisy_positions, clean_positions], dim=-1)
        hidden = self.backbone(slots, positions, self.context_attention(x_t, x_0, starts))
        of_noisy, of_clean = hidden.split([x_t.shape[1], hidden.shape[1] - x_t.shape[1]], dim=1)
        return of_noisy, self.of_tokens(of_clean, num_blocks)

    def noisy_slots(self, x_t: Tensor, x_0: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give the slots of noisy copies, ``(B, C * L, width)``, and their positions, ``(C * L,)``; see :meth:`hidden`.

        The positions of noisy blocks that are no whole copies are ``(B, 1, N * block_size)``.
        """
        size, num_copies = self.block_size, x_t.shape[1] // x_0.shape[1]
        firsts = torch.arange(0, x_0.shape[1], size, device=x_0.device).repeat(num_copies) if starts is None else starts
        # The first slot of a block reads the token before it, which is clean.
        before = self.previous_tokens(x_0).gather(1, firsts.expand(len(x_0), -1))[..., None]
        noisy = torch.cat([before, x_t.unflatten(1, (-1, size))[..., :-1]], dim=-1).flatten(1)
        positions = (firsts[..., None] + torch.arange(size, device=x_0.device)).flatten(-2)
        return self.embed_tokens(noisy), positions if starts is None else positions[:, None]

    def context_attention(self, x_t: Tensor, x_0: Tensor, starts: Tensor | None = None) -> CausalContextAttention:
        """Say how noisy copies ``x_t``, or blocks that begin at ``starts``, and the clean copy attend."""
        num_blocks, num_copies = x_0.shape[1] // self.block_size, x_t.shape[1] // x_0.shape[1]
        num_anchors = self.anchors.anchors_per_block
        sizes = num_blocks, self.block_size, num_anchors, num_copies
        return CausalContextAttention(*sizes, x_0.device, starts, self.backbone.flex_attention)

    def reader(self, batch: NoisyBatch) -> Callable[[Tensor], Tensor]:
        """Read the clean copy once; see :class:`MaskedTalker`."""
        x_0 = batch.speech.x_0
        clean = self.slots(batch.text, x_0)
        positions = self.slot_positions(x_0.shape[1] // self.block_size, x_0.device)
        attention = self.context_attention(batch.targets, x_0, batch.starts)
        cache = self.backbone.remember(clean, positions, attention.of_clean, batch.targets.shape[1])
        return lambda x_t: self.backbone(*self.noisy_slots(x_t, x_0, batch.starts), attention.after_clean, cache)

    def masked_hidden(self, batch: NoisyBatch, x_t: Tensor) -> Tensor:
        """Give the hidden states that the head predicts from; see :class:`MaskedTalker`."""
        return self.hidden(batch.text, x_t, batch.speech.x_0, batch.starts)[0]

    def hidden_and_side_terms(self, batch: NoisyBatch) -> tuple[Tensor, tuple[LossTerm, ...]]:
        """Give these hidden states at ``x_t``, and the weighted next-token loss; see :class:`MaskedTalker`."""
        x_0, is_scored = batch.speech.x_0, batch.speech.is_up_to_first_eos
        of_noisy, of_clean = self.hidden(batch.text, batch.x_t, x_0, batch.starts)
        if self.next_token_weight == 0:
            return of_noisy, ()
        next_token_nll, _ = masked_cross_entropy(self.head, of_clean, x_0, is_scored)
        return of_noisy, (LossTerm(next_token_nll, is_scored.sum(), self.next_token_weight),)

    def check(self, decoding: Decoding) -> None:
        """Allow every rule: this talker predicts masked tokens and next ones; see :class:`Talker`."""
        AnchoredTalker.check(self, decoding)
        self.check_sampler(decoding)

    def block_program(self, max_blocks: int, decoding: Decoding) -> BlockProgram:
        """Decode a block; see :class:`AnchoredTalker`."""
        return SetBlockProgram(self.speech_parts, decoding, max_blocks)

    def new_stepwise_decoder(self, max_blocks: int, decoding: Decoding) -> BlockDecoder:
        """Decode block by block; see :class:`AnchoredTalker`."""
        return _BlockDecoder(self, max_blocks, decoding)


def training_on(talker: SetBlockTalker, noisy_blocks: DrawnBlocks, next_token_weight: float) -> SetBlockTalker:
    """Let a trained talker learn further from other noisy blocks, and with another weight of the next-token loss.

    A refined reply is what next-token prediction says, so that a short fine-tuning gains from a larger weight of it.

    Args:
        talker: A trained talker.
        noisy_blocks: See :class:`SetBlockTalker`.
        next_token_weight: The same.

    Returns:
        The same talker.

    Raises:
        UserError: If the weight is negative.
    """
    require_at_least(0, next_token_weight=next_token_weight)
    talker.noisy_blocks, talker.next_token_weight = noisy_blocks, next_token_weight
    return talker


class _BlockDecoder(BlockDecoder):
    """Cache of the committed slots, and the finished block that is still to be committed."""

    def __init__(self, talker: SetBlockTalker, max_blocks: int, decoding: Decoding) -> None:
        self.talker, self.fused_commit = talker, decoding.fused_commit
        self.device = talker.head.weight.device
        self.fill = BlockFiller(decoding, talker.block_size, talker.vocabulary.mask_id, self.device)
        slots_per_block = talker.anchors.anchors_per_block + talker.block_size
        self.cache = talker.backbone.new_cache(1, max_blocks * slots_per_block + talker.block_size)
        self.last_token = torch.full((1, 1), talker.vocabulary.bos_id, device=self.device)
        self.pending = self.last_token[:, :0]
        self.first_position = 0

    def decode_block(self, anchors: Tensor) -> DecodedBlock:
        """Unmask one block; see :class:`BlockDecoder`."""
        talker = self.talker
        uncommitted: Tensor | None = anchors

        def predict(x_t: Tensor) -> Tensor:
            nonlocal uncommitted
            noisy = self.read(x_t)
            hidden = self.forward(noisy) if uncommitted is None else self.forward_and_commit(uncommitted, noisy)
            uncommitted = None
            return talker.predict_masked(hidden, x_t)

        draft, num_steps, order = self.fill(predict)
        tokens = draft
        refined = self.fill.refine(self.predict_next_tokens, draft, num_steps)
        if refined is not None:
            order = torch.where(refined.order < 0, order, num_steps + refined.order)
            tokens, num_steps = refined.tokens, num_steps + refined.num_steps
        self.pending = self.read(tokens)
        if refined is not None and refined.is_settled:
            # The last pass has written the keys and values of these very tokens.
            self.cache.commit(talker.block_size)
            self.pending = self.pending[:, :0]
        self.last_token = tokens[:, -1:]
        self.first_position += talker.block_size
        return DecodedBlock(tokens[0], num_steps, order[0], None if refined is None else draft[0])

    def close_block(self) -> int:
        """Write the finished block's keys and values in a pass of their own, unless the next block does it."""
        num_pending = self.pending.shape[1]
        if self.fused_commit or num_pending == 0:
            return 0
        order = torch.arange(num_pending, device=self.device)
        mask = mask_behind_committed(order, self.cache.num_committed)
        positions = self.first_position - num_pending + order
        self.talker.backbone(self.talker.embed_tokens(self.pending), positions, mask, self.cache)
        self.cache.commit(num_pending)
        self.pending = self.pending[:, :0]
        return 1

    def predict_next_tokens(self, tokens: Tensor) -> Tensor:
        """Predict each token of the block in work from those before it, ``(1, block_size, V)``."""
        offsets = torch.arange(self.talker.block_size, device=self.device)
        mask = mask_behind_committed(offsets, self.cache.num_committed)
        slots = self.talker.embed_tokens(self.read(tokens))
        return self.talker.head(self.talker.backbone(slots, self.first_position + offsets, mask, self.cache))

    def read(self, tokens: Tensor) -> Tensor:
        """Give what the slots of the block in work read: each the token before it, ``(1, block_size) int64``."""
        return torch.cat([self.last_token, tokens[:, :-1]], dim=1)

    def forward(self, noisy: Tensor) -> Tensor:
        """Run the block in work, which may attend to all that is committed and to itself."""
        talker = self.talker
        positions = self.first_position + torch.arange(talker.block_size, device=self.device)
        return talker.backbone(talker.embed_tokens(noisy), positions, None, self.cache)

    def forward_and_commit(self, anchors: Tensor, noisy: Tensor) -> Tensor:
        """Run it behind the finished block and its own anchors, and keep the keys and values of these two."""
        talker, num_pending = self.talker, self.pending.shape[1]
        num_anchors, block_size = talker.anchors.anchors_per_block, talker.block_size
        num_new = num_pending + num_anchors
        slots = [
            talker.embed_tokens(self.pending),
            talker.embed_slots(anchors, self.pending[:, None, :0]),
            talker.embed_tokens(noisy),
        ]
        offsets = [torch.arange(n, device=self.device) for n in (num_pending, num_anchors, block_size)]
        offsets[0] = offsets[0] - num_pending
        order = torch.arange(num_new + block_size, device=self.device)
        order[num_pending:num_new], order[num_new:] = num_new, num_new + 1
        mask = mask_behind_committed(order, self.cache.num_committed)
        positions = self.first_position + torch.cat(offsets)
        hidden = talker.backbone(torch.cat(slots, dim=1), positions, mask, self.cache)
        self.cache.commit(num_new)
        return hidden[:, num_new:]
