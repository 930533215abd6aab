"""How far the tokens of a block depend on each other: what a talker loses that decides them in few steps."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masked.noisy_batch import NoisyBatch
from lightning_modules.talker.network.anchors import TextStates


@dataclass(frozen=True)
class BlockNll:
    """Negative log-likelihood of gold blocks, by the number of steps in which their tokens are revealed.

    Attributes:
        num_steps: Numbers of steps, from 1 to the block size.
        sums: In nats, by number of steps and block of the reply, ``(K, num_blocks) float64``.
        counts: Tokens of each block, over all replies, ``(num_blocks,) int64``.
    """

    num_steps: tuple[int, ...]
    sums: Tensor
    counts: Tensor

    def __add__(self, other: "BlockNll") -> "BlockNll":
        """Add the blocks of other replies."""
        num_blocks = max(len(self.counts), len(other.counts))
        sums, counts = self.sums.new_zeros(len(self.num_steps), num_blocks), self.counts.new_zeros(num_blocks)
        for one in (self, other):
            sums[:, : len(one.counts)] += one.sums
            counts[: len(one.counts)] += one.counts
        return BlockNll(self.num_steps, sums, counts)

    def per_token(self, num_steps: int, block: int | None = None) -> float:
        """Give nats per token of all blocks, or of one; 0 if there is none."""
        sums, counts = self.sums[self.num_steps.index(num_steps)], self.counts
        chosen = slice(None) if block is None else slice(block, block + 1)
        return float(sums[chosen].sum() / counts[chosen].sum().clamp(min=1))

    def dependence(self, block: int | None = None) -> float:
        """Give one-step minus sequential NLL, in nats per token: 0 if the tokens of a block are independent."""
        return self.per_token(self.num_steps[0], block) - self.per_token(self.num_steps[-1], block)

    def as_scalars(self) -> dict[str, float]:
        """Give scalars under tags that are the same for every talker."""
        by_steps = {f"val/block_nll/{steps}_steps": self.per_token(steps) for steps in self.num_steps}
        by_block = {f"val/block_dependence/block_{block}": self.dependence(block) for block in range(len(self.counts))}
        return {**by_steps, "val/block_dependence": self.dependence(), **by_block}


@torch.no_grad()
def block_nll(talker: MaskedTalker, text: TextStates, units: Tensor, unit_lengths: Tensor) -> BlockNll:
    """Score gold blocks given clean earlier ones, their tokens revealed from left to right in K equal parts.

    With K as large as the block this is the chain rule: token ``i`` is predicted from the gold tokens before it, all
    others masked. With K = 1 all are predicted from masks alone. The difference is what tokens say about each other
    that no talker can use that decides them in one step; distillation can only move which of several ways of saying a
    thing is chosen. All K take one pass for each token of a block together.

    Args:
        talker: In evaluation mode.
        text: What the thinker wrote.
        units: Gold speech tokens, ``(B, T) int64``.
        unit_lengths: Speech tokens of each row, ``(B,) int64``.

    Returns:
        Nats by number of steps, one that divides the block size, and by block. The EOS that fill a last block count.
    """
    speech, block_size = talker.lay_out(units, unit_lengths), talker.block_size
    x_0, device = speech.x_0, speech.x_0.device
    is_real = speech.is_real.unflatten(1, (-1, block_size))
    parts = [size for size in range(block_size, 0, -1) if block_size % size == 0]
    sums = torch.zeros(len(parts), speech.num_blocks, dtype=torch.float64)
    everywhere = torch.ones_like(x_0, dtype=torch.bool)
    batch = NoisyBatch(text, speech, x_0, everywhere, is_real.sum(dim=-1), talker.vocabulary.mask_id, x_0)
    read = talker.reader(batch)
    # PAD, behind the own blocks of a row, has no output; what stands there does not count.
    targets = x_0.clamp(max=talker.vocabulary.num_outputs - 1).unflatten(1, (-1, block_size))
    offsets = torch.arange(block_size, device=device)
    for blocks in _read_together(talker, speech.num_blocks):
        is_in_work = torch.zeros(speech.num_blocks, dtype=torch.bool, device=device)
        is_in_work[blocks] = True
        for first in range(block_size):
            sizes = [size for size in parts if first % size == 0]
            is_masked = (is_in_work[:, None] & (offsets >= first)).flatten()
            hidden = read(torch.where(is_masked, talker.vocabulary.mask_id, x_0))
            coupled = talker.couple(hidden, x_0).unflatten(1, (-1, block_size))
            scored = slice(first, first + sizes[0])
            log_probs = talker.predict(coupled[:, blocks, scored]).float().log_softmax(dim=-1)
            nll = -log_probs.gather(-1, targets[:, blocks, scored, None])[..., 0].double().cpu()
            nll = nll * is_real[:, blocks, scored]
            for size in sizes:
                sums[parts.index(size), blocks] += nll[..., :size].sum(dim=(0, 2))
    return BlockNll(tuple(block_size // size for size in parts), sums, is_real.sum(dim=(0, 2)))


def _read_together(talker: MaskedTalker, num_blocks: int) -> Iterator[slice]:
    """Give the blocks that one pass may mask: all, or each alone if a block reads earlier ones as they are masked."""
    if talker.clean_context:
        yield slice(0, num_blocks)
    else:
        yield from (slice(block, block + 1) for block in range(num_blocks))
