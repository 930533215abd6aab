"""Decodes block after block with a program: counts places, holds caches and sources of noise."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.talker.decoding.sampling import NoiseSource
from lightning_modules.talker.decoding.static.program import Block, Place
from lightning_modules.talker.decoding.static.runners import BlockRunner
from lightning_modules.talker.decoding.streaming import BlockDecoder, DecodedBlock


class StaticDecoder(BlockDecoder):
    """Decodes the blocks of many replies side by side, each reply as it is decoded alone.

    Args:
        runner: Runs the program.
        batch_size: Replies.
    """

    def __init__(self, runner: BlockRunner, batch_size: int = 1) -> None:
        self.runner, self.program = runner, runner.program
        decoding, device = self.program.decoding, self.program.device
        self.caches = runner.new_caches(batch_size)
        self.carry = self.program.begin(batch_size)
        self.generators = [torch.Generator(device).manual_seed(decoding.seed) for _ in range(batch_size)]
        self.start = self.position = 0

    @property
    def runs_ahead(self) -> bool:
        """Whether the runner does, and no block is committed by itself; see :class:`BlockDecoder`."""
        return self.runner.runs_ahead and self.program.decoding.fused_commit

    def decode(self, anchors: Tensor) -> Block:
        """Decode the next block of each reply, whose anchors are ``(B, Q, width)``."""
        start, num_new = self.start, self.program.num_slots(self.carry)
        place = Place(start, self.position, self.runner.num_keys(start + num_new))
        with self._without_autocast():
            block = self.runner(anchors, self.carry, self.caches, place, self._noise())
        self.carry = block.carry
        self.start += block.num_committed
        self.position += self.program.parts.block_size
        return block

    def decode_block(self, anchors: Tensor) -> DecodedBlock:
        """Decode the next block of the only reply; see :class:`BlockDecoder`."""
        block = self.decode(anchors[:, 0])
        order, draft = (None if one is None else one[0] for one in (block.order, block.draft))
        return DecodedBlock(block.tokens[0], block.num_forwards, order, draft)

    def close_block(self) -> int:
        """Commit the finished block in a pass of its own, unless the next one does it; see :class:`BlockDecoder`."""
        if self.program.decoding.fused_commit:
            return 0
        num_slots = self.start + self.program.num_slots(self.carry)
        place = Place(self.start, self.position, self.runner.num_keys(num_slots))
        with self._without_autocast():
            self.carry, num_committed = self.program.commit(self.carry, self.caches, place)
        self.start += num_committed
        return int(num_committed > 0)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the replies."""
        index = torch.tensor(rows, device=self.program.device)
        for cache in self.caches:
            cache.keep(index)
        self.carry = tuple(one.index_select(0, index) for one in self.carry)
        self.generators = [self.generators[row] for row in rows]

    def _without_autocast(self) -> torch.autocast:
        """Turn autocast off: the program has converted what it would."""
        return torch.autocast(self.program.device.type, enabled=False)

    def _noise(self) -> NoiseSource | None:
        if self.program.sampler.temperature == 0:
            return None
        return NoiseSource(self.generators, (self.program.rows_of_noise, self.program.parts.num_outputs))
