"""Refinement: a drafted block is corrected, token by token, by what next-token prediction says of all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.number_checks import require_at_least


class Refined(NamedTuple):
    """A block that was corrected.

    Attributes:
        tokens: Its tokens, ``(1, block_size) int64``.
        num_steps: Steps taken.
        order: Step that corrected each token, from 0; -1 where the draft stands, ``(1, block_size) int64``.
        is_settled: Whether the last step changed nothing: these are the tokens that it has read.
    """

    tokens: Tensor
    num_steps: int
    order: Tensor
    is_settled: bool


@dataclass(frozen=True)
class Refinement:
    """Lets a block's first steps make a draft by unmasking, and those that are left correct it.

    A correcting step predicts every token from those before it, and replaces the first one that is not the most
    probable. What stands before it is what one-by-one greedy decoding gives, so that a block which needs no more
    corrections than it has steps is decoded without loss; what stands behind it is still the draft, which fits the
    corrected token better than predictions from the wrong one do.

    Attributes:
        draft_steps: Steps per block that unmask, at most; what is left of its steps corrects.

    Raises:
        UserError: If there is no step to draft in.

    Reference: arXiv 2211.17192 (speculative decoding, here with one network); arXiv 2509.04185 (set block decoding).
    """

    draft_steps: int = 4

    def __post_init__(self) -> None:
        """Check the range."""
        require_at_least(1, draft_steps=self.draft_steps)

    def __str__(self) -> str:
        """Give the rule in words."""
        return f"refined after {self.draft_steps}"

    def __call__(self, predict: Callable[[Tensor], Tensor], tokens: Tensor, max_steps: int) -> Refined:
        """Correct a block.

        Args:
            predict: Gives the logits ``(1, block_size, V)`` of each token of a block given those before it.
            tokens: The draft, ``(1, block_size) int64``.
            max_steps: Steps to take at most.

        Returns:
            The tokens, and what it took.
        """
        order = torch.full_like(tokens, -1)
        for step in range(max_steps):
            best = predict(tokens).argmax(dim=-1)
            wrong = (best != tokens)[0].nonzero()
            if len(wrong) == 0:
                return Refined(tokens, step + 1, order, True)
            first = int(wrong[0])
            tokens, order = tokens.clone(), order.clone()
            tokens[0, first], order[0, first] = best[0, first], step
        return Refined(tokens, max_steps, order, False)
