"""Where the slots of masked blocks lie, what they read and what they attend to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.talker.decoding.static.masked_tokens import MaskedProgram
from lightning_modules.talker.decoding.static.program import Carry, Place
from lightning_modules.talker.network.key_value_cache import StaticCache


class BlockCausalProgram(MaskedProgram):
    """Blocks that attend to all of themselves and carry their anchors in place: masked diffusion.

    The carry is the finished block, embedded, ``(B, block_size, width)``, or nothing.
    """

    @property
    def capacity(self) -> int:
        """Tokens of each block; see :class:`BlockProgram`."""
        return self.max_blocks * self.parts.block_size

    def begin(self, batch_size: int) -> Carry:
        """Read nothing; see :class:`BlockProgram`."""
        return (self.embed.weight.new_zeros(batch_size, 0, self.embed.embedding_dim),)

    def num_slots(self, carry: Carry) -> int:
        """Count the finished block and the one in work; see :class:`BlockProgram`."""
        return carry[0].shape[1] + self.parts.block_size

    def lead(self, anchors: Tensor, carry: Carry) -> Tensor:
        """Give the finished block; see :class:`MaskedProgram`."""
        return carry[0]

    def lay_out(self, carry: Carry) -> tuple[Tensor, Tensor]:
        """Let each block see itself and those before it; see :class:`MaskedProgram`."""
        pending = self.block_offsets[: carry[0].shape[1]]
        offsets = torch.cat([pending - len(pending), self.block_offsets])
        reach = torch.cat([torch.full_like(pending, len(pending)), torch.full_like(self.block_offsets, len(offsets))])
        return offsets, reach

    def beside(self, anchors: Tensor, carry: Carry) -> Tensor:
        """Lay the anchors in place; see :class:`MaskedProgram`."""
        return self.parts.anchors.in_place(anchors[:, None], self.parts.block_size)

    def embed_block(self, tokens: Tensor, beside: Tensor) -> Tensor:
        """Let each slot read its own token, with its anchor; see :class:`MaskedProgram`."""
        return self.embed(tokens) + beside

    def carry_of(self, tokens: Tensor, beside: Tensor, is_committed: bool) -> Carry:
        """Hand on the block with its anchors; see :class:`MaskedProgram`."""
        return (self.embed_block(tokens, beside),)

    def commit(self, carry: Carry, caches: Sequence[StaticCache], place: Place) -> tuple[Carry, int]:
        """Write the finished block; see :class:`BlockProgram`."""
        (pending,) = carry
        num_pending = pending.shape[1]
        offsets = self.block_offsets[:num_pending] - num_pending
        (window,) = self.windows(place, offsets, torch.full_like(offsets, num_pending))
        self.networks[0](pending, window, caches[0].open(place.num_keys), 1)
        return (pending[:, :0],), num_pending


class SetBlockProgram(MaskedProgram):
    """Blocks that are read causally once they are finished, with anchor slots of their own: set block decoding.

    The carry is what the slots of the finished block read, ``(B, n) int64``, nothing if they are committed, and its
    last token, ``(B, 1) int64``, BOS before the first block.
    """

    @property
    def capacity(self) -> int:
        """Anchors and tokens of each block, and the masked slots of the last one; see :class:`BlockProgram`."""
        size = self.parts.block_size
        return self.max_blocks * (self.parts.anchors.anchors_per_block + size) + size

    def begin(self, batch_size: int) -> Carry:
        """Read BOS; see :class:`BlockProgram`."""
        last = torch.full((batch_size, 1), self.parts.bos_id, device=self.device)
        return last[:, :0], last

    def num_slots(self, carry: Carry) -> int:
        """Count the finished block, anchors and the block in work; see :class:`BlockProgram`."""
        return carry[0].shape[1] + self.parts.anchors.anchors_per_block + self.parts.block_size

    def lead(self, anchors: Tensor, carry: Carry) -> Tensor:
        """Give the finished block and the anchors; see :class:`MaskedProgram`."""
        slots = self.anchor_slots(anchors)
        return torch.cat([self.embed(carry[0]), slots], dim=1) if carry[0].shape[1] else slots

    def lay_out(self, carry: Carry) -> tuple[Tensor, Tensor]:
        """Order the finished block causally, then anchors, then the block in work; see :class:`MaskedProgram`."""
        pending = self.block_offsets[: carry[0].shape[1]]
        of_anchors = torch.arange(self.parts.anchors.anchors_per_block, device=self.device)
        offsets = torch.cat([pending - len(pending), of_anchors, self.block_offsets])
        num_lead = len(pending) + len(of_anchors)
        of_block = torch.full_like(self.block_offsets, len(offsets))
        return offsets, torch.cat([pending + 1, torch.full_like(of_anchors, num_lead), of_block])

    def beside(self, anchors: Tensor, carry: Carry) -> Tensor:
        """Give the token before the block; see :class:`MaskedProgram`."""
        return carry[1]

    def embed_block(self, tokens: Tensor, beside: Tensor) -> Tensor:
        """Let each slot read the token before its own; see :class:`MaskedProgram`."""
        return self.embed(self.read(tokens, beside))

    def read(self, tokens: Tensor, before: Tensor) -> Tensor:
        """Give the tokens that the block's own slots read, ``(B, block_size) int64``."""
        return torch.cat([before, tokens[:, :-1]], dim=1)

    def carry_of(self, tokens: Tensor, beside: Tensor, is_committed: bool) -> Carry:
        """Hand on the slots, unless they are committed, and the last token; see :class:`MaskedProgram`."""
        pending = tokens[:, :0] if is_committed else self.read(tokens, beside)
        return pending, tokens[:, -1:]

    def commit(self, carry: Carry, caches: Sequence[StaticCache], place: Place) -> tuple[Carry, int]:
        """Write the finished block, if it is not; see :class:`BlockProgram`."""
        pending, last = carry
        num_pending = pending.shape[1]
        if num_pending:
            offsets = self.block_offsets[:num_pending]
            (window,) = self.windows(place, offsets - num_pending, offsets + 1)
            self.networks[0](self.embed(pending), window, caches[0].open(place.num_keys), 1)
        return (pending[:, :0], last), num_pending
