"""Unmasking a block: which masked positions a decoding step reveals, and the steps themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, overload

import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.talker.decoding.sampling import TokenSampler


@overload
def num_to_reveal(num_masked: int, num_steps_left: int) -> int: ...
@overload
def num_to_reveal(num_masked: Tensor, num_steps_left: int | Tensor) -> Tensor: ...
def num_to_reveal(num_masked: int | Tensor, num_steps_left: int | Tensor) -> int | Tensor:
    """Share the masked positions of a block evenly over the steps that are left.

    Args:
        num_masked: Positions still masked, ``R_j``, of one block or int64 of any shape of many.
        num_steps_left: Steps including this one, ``K - j + 1``.

    Returns:
        ``ceil(R_j / (K - j + 1))``.

    Reference: arXiv 2602.08607, block diffusion decoding.
    """
    return -(-num_masked // num_steps_left)


def most_confident(confidence: Tensor, is_masked: Tensor, num_revealed: int | Tensor) -> Tensor:
    """Choose the masked positions in which the network is surest, the earlier one of equals.

    Args:
        confidence: Probability of the token chosen at each position, ``(..., L)``.
        is_masked: Positions to choose from, ``(..., L) bool``, at least ``num_revealed`` of them in each row.
        num_revealed: Positions to choose in each row, for all or ``(..., 1) int64``.

    Returns:
        True at the chosen positions, ``(..., L) bool``.
    """
    candidates = confidence.masked_fill(~is_masked, -torch.inf)
    return (falling_ranks(candidates) < num_revealed) & is_masked


def falling_ranks(values: Tensor) -> Tensor:
    """Rank values from the greatest, which has rank 0, the earlier one of equals first.

    Values are compared pair by pair: of so few a compiler makes one kernel, and of sorting it makes none.

    Args:
        values: ``(..., L)``.

    Returns:
        ``(..., L) int64``.
    """
    own, others = values[..., :, None], values[..., None, :]
    is_earlier = torch.ones(values.shape[-1:] * 2, dtype=torch.bool, device=values.device).tril_(-1)
    return torch.where(is_earlier, others >= own, others > own).sum(dim=-1)


def within_entropy(logits: Tensor, is_masked: Tensor, bound: float) -> Tensor:
    """Choose the masked positions whose tokens together are nearly certain, whatever the others turn out to be.

    Positions are taken by rising entropy while the entropies of those taken before do not add up to more than the
    bound. It limits how much the tokens of these positions can depend on each other, of which choosing each by itself
    knows nothing.

    Args:
        logits: ``(..., L, V)``.
        is_masked: Positions to choose from, ``(..., L) bool``.
        bound: In nats.

    Returns:
        True at the chosen positions, ``(..., L) bool``: at least one in each row that has any.

    Reference: arXiv 2505.24857 (entropy bounded unmasking).
    """
    entropy = torch.special.entr(logits.float().softmax(dim=-1)).sum(dim=-1).masked_fill(~is_masked, torch.inf)
    rising, order = entropy.sort(dim=-1, stable=True)
    of_those_before = torch.cat([torch.zeros_like(rising[..., :1]), rising[..., :-1].cumsum(dim=-1)], dim=-1)
    return torch.zeros_like(is_masked).scatter(-1, order, of_those_before <= bound) & is_masked


class Filling(NamedTuple):
    """A block that was filled.

    Attributes:
        tokens: Its tokens, ``(B, block_size) int64``.
        num_steps: Steps taken.
        order: Step that revealed each token, from 0, ``(B, block_size) int64``.
    """

    tokens: Tensor
    num_steps: int
    order: Tensor


@dataclass(frozen=True)
class Unmasking:
    """Which masked positions of a block each step reveals.

    Attributes:
        confidence_threshold: Reveal also every position whose token is at least this probable, so that an easy block
            takes fewer steps than it may; None reveals the same number in each step, as the paper does.
        entropy_bound: Reveal also the positions that :func:`within_entropy` chooses, in nats; None as above. In place
            of the threshold.

    Raises:
        UserError: If the threshold is not a probability, a number is negative, or both threshold and bound are given.

    Reference: arXiv 2602.08607, block diffusion decoding; the threshold is that of arXiv 2505.22618 (Fast-dLLM), the
        bound that of arXiv 2505.24857.
    """

    confidence_threshold: float | None = None
    entropy_bound: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(0.0, entropy_bound=self.entropy_bound)
        if self.entropy_bound is not None and self.confidence_threshold is not None:
            raise UserError(
                f"confidence_threshold is {self.confidence_threshold} and entropy_bound {self.entropy_bound}: give one"
            )
        if self.confidence_threshold is not None and not 0.0 < self.confidence_threshold <= 1.0:
            raise UserError(
                f"confidence_threshold is {self.confidence_threshold}: give a probability above 0 and up to 1, or null."
            )

    @property
    def is_adaptive(self) -> bool:
        """Whether an easy block takes fewer steps than it may."""
        return self.confidence_threshold is not None or self.entropy_bound is not None

    def __str__(self) -> str:
        """Give the rule in words; empty for the paper's."""
        if self.confidence_threshold is not None:
            return f"threshold {self.confidence_threshold:g}"
        return "" if self.entropy_bound is None else f"entropy bound {self.entropy_bound:g}"

    def __call__(
        self,
        predict: Callable[[Tensor], Tensor],
        masked: Tensor,
        mask_id: int,
        num_steps: int,
        sampler: TokenSampler,
        generator: torch.Generator | None = None,
    ) -> Filling:
        """Fill a block in at most ``num_steps`` steps; a token once revealed does not change.

        Args:
            predict: Gives the logits ``(B, block_size, V)`` of a partly masked block ``(B, block_size)``; called each
                step.
            masked: A block of nothing but masks, ``(B, block_size) int64``.
            mask_id: The mask.
            num_steps: Steps, ``K``, at most the block size.
            sampler: Chooses tokens.
            generator: Source of drawn tokens, on the block's device.

        Returns:
            The tokens, the number of steps taken, and when each token was revealed.
        """
        tokens, order, num_masked = masked, torch.zeros_like(masked), masked.shape[1]
        for step in range(num_steps):
            is_masked = tokens == mask_id
            logits = predict(tokens)
            candidates, confidence = sampler(logits, generator)
            num_revealed = num_to_reveal(num_masked, num_steps - step)
            revealed = most_confident(confidence, is_masked, num_revealed)
            if self.is_adaptive:
                revealed = revealed | self.easy(logits, confidence, is_masked)
            tokens, order = torch.where(revealed, candidates, tokens), order + step * revealed
            if not self.is_adaptive:
                num_masked -= num_revealed  # without asking the device
            else:
                num_masked = int((tokens == mask_id).sum(dim=1).max())
            if num_masked == 0:
                return Filling(tokens, step + 1, order)
        return Filling(tokens, num_steps, order)

    def easy(self, logits: Tensor, confidence: Tensor, is_masked: Tensor) -> Tensor:
        """Choose what an adaptive rule reveals beyond a step's share, ``(B, n) bool``.

        Args:
            logits: ``(B, n, V)``.
            confidence: Probability of the token chosen at each position, ``(B, n)``.
            is_masked: Positions to choose from, ``(B, n) bool``.
        """
        if self.entropy_bound is not None:
            return within_entropy(logits, is_masked, self.entropy_bound)
        assert self.confidence_threshold is not None
        return is_masked & (confidence >= self.confidence_threshold)


def powers_of_two_up_to(block_size: int) -> tuple[int, ...]:
    """Give the steps per block that any masked talker offers: 4, the paper's default, then other powers of two."""
    powers = [2**n for n in range(block_size.bit_length()) if 2**n <= block_size]
    return tuple(sorted(powers, key=lambda steps: (steps != 4, -steps)))
