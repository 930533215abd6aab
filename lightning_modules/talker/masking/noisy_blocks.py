"""Which blocks of a reply training predicts, where they begin, and how many of them are masked as a whole."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.number_checks import require_at_least, require_within
from lightning_modules.talker.masking.schemes import Masking, RowGenerators


@dataclass(frozen=True)
class NoisyBlocks:
    """Noisy blocks of a batch, on the host.

    Attributes:
        starts: Position of each block's first token in the clean reply, ``(B, N) int64``.
        is_masked: Which tokens of each are masked, ``(B, N * block_size) bool``.
    """

    starts: Tensor
    is_masked: Tensor

    def positions(self, block_size: int) -> Tensor:
        """Position of each token in the clean reply, ``(B, N * block_size) int64``."""
        return (self.starts[..., None] + torch.arange(block_size)).flatten(1)


class DrawnBlocks:
    """Draws as many noisy blocks for a long reply as for a short one, anywhere in it.

    With a clean copy of the past each noisy block is a problem of its own, so that there is no need for whole noisy
    copies. In expectation each of a reply's ``K`` blocks is drawn ``N / K`` times; the number differs from that by less
    than 1. The loss is the plain mean over the masked tokens of the blocks that are drawn: replies of few blocks weigh
    as much as those of many.

    Args:
        num_blocks: Noisy blocks per reply, ``N``.
        off_grid_share: Share of the blocks, apart from those drawn from a reply's last block, that begin 1 to
            ``block_size - 1`` tokens behind a place of the grid. They see the anchors up to that place, and the clean
            tokens up to their own. Decoding knows the grid's places alone.
        fully_masked_share: Share of the blocks that are masked as a whole, as in the first step of decoding; in others
            the talker's masking draws.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(self, num_blocks: int, off_grid_share: float = 0.0, fully_masked_share: float = 0.0) -> None:
        require_at_least(1, num_blocks=num_blocks)
        require_within(0.0, 1.0, off_grid_share=off_grid_share, fully_masked_share=fully_masked_share)
        self.num_blocks = num_blocks
        self.off_grid_share, self.fully_masked_share = off_grid_share, fully_masked_share

    def __call__(
        self, num_own_blocks: Tensor, block_size: int, masking: Masking, generator: torch.Generator | RowGenerators
    ) -> NoisyBlocks:
        """Draw for a batch.

        Args:
            num_own_blocks: Blocks of each reply, ``(B,) int64``, on the host.
            block_size: Tokens per block.
            masking: Draws masks of the blocks, which it takes for those of one sequence.
            generator: Source of randomness; one per row draws for a row alike in any batch.
        """
        if not isinstance(generator, torch.Generator):
            rows = [self(num_own_blocks[row : row + 1], block_size, masking, own) for row, own in enumerate(generator)]
            return NoisyBlocks(torch.cat([row.starts for row in rows]), torch.cat([row.is_masked for row in rows]))
        block = self._draw_blocks(num_own_blocks, generator)
        offset = torch.randint(1, max(2, block_size), block.shape, generator=generator)
        is_off_grid = torch.rand(block.shape, generator=generator) < self.off_grid_share
        is_off_grid &= (block + 1 < num_own_blocks[:, None]) & (offset < block_size)
        is_full = torch.rand(block.shape, generator=generator) < self.fully_masked_share
        everywhere = torch.ones(len(block), self.num_blocks * block_size, dtype=torch.bool)
        is_masked = masking(everywhere, block_size, generator) | is_full.repeat_interleave(block_size, dim=1)
        return NoisyBlocks(block * block_size + torch.where(is_off_grid, offset, 0), is_masked)

    def _draw_blocks(self, num_own_blocks: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the index of each noisy block, ``(B, N) int64``, at equal distances along the reply."""
        first = torch.rand((len(num_own_blocks), 1), generator=generator, dtype=torch.float64)
        places = (first + torch.arange(self.num_blocks)) / self.num_blocks
        return (places * num_own_blocks[:, None]).long().clamp(max=num_own_blocks[:, None] - 1)
