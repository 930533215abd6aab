"""The steps that fill one block under a decoding: some unmask, what is left may refine."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refined
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.unmasking import Filling, Unmasking


class BlockFiller:
    """Fills the blocks of one reply by the rules of a decoding.

    Args:
        decoding: Steps and rules; its number of steps is given.
        block_size: Tokens per block.
        mask_id: The mask.
        device: Where blocks are filled.
    """

    def __init__(self, decoding: Decoding, block_size: int, mask_id: int, device: torch.device) -> None:
        assert decoding.num_steps is not None
        self.num_steps, self.refinement = decoding.num_steps, decoding.refinement
        self.unmasking, self.sampler = decoding.unmasking or Unmasking(), decoding.sampler or TokenSampler()
        self.generator = torch.Generator(device).manual_seed(decoding.seed)
        self.masked = torch.full((1, block_size), mask_id, device=device)
        self.mask_id = mask_id

    def __call__(self, predict: Callable[[Tensor], Tensor]) -> Filling:
        """Fill a block by unmasking; the steps that refinement leaves to the draft, if there is any.

        Args:
            predict: As of :class:`Unmasking`.

        Returns:
            The tokens, the steps taken, and when each token was revealed.
        """
        num_drafting = self.num_steps if self.refinement is None else self.refinement.draft_steps
        max_steps = min(num_drafting, self.num_steps)
        return self.unmasking(predict, self.masked, self.mask_id, max_steps, self.sampler, self.generator)

    def refine(self, predict: Callable[[Tensor], Tensor], tokens: Tensor, num_steps: int) -> Refined | None:
        """Spend the steps that are left on corrections.

        Args:
            predict: As of :class:`Refinement`.
            tokens: The draft, ``(1, block_size) int64``.
            num_steps: Steps that the draft took.

        Returns:
            What came of it; None if no refinement is asked for, or no step is left.
        """
        if self.refinement is None or num_steps >= self.num_steps:
            return None
        return self.refinement(predict, tokens, self.num_steps - num_steps)
