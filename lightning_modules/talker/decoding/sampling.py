"""Choosing tokens from logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_modules.errors import UserError


class NoiseOfSteps(Protocol):
    """Gives the noise of each drawing, in their order.

    It is a race of all tokens, which the one wins that has the highest probability over its own time.
    """

    def __getitem__(self, drawing: int, /) -> Tensor:
        """Give the noise of a drawing, ``(B, n, V) float32``."""
        ...


@dataclass(frozen=True)
class TokenSampler:
    """Chooses tokens and says how sure it is.

    Attributes:
        temperature: 0 takes the most likely token; otherwise tokens are drawn from ``softmax(logits / temperature)``.
        top_k: Draw from this many most likely tokens only; None draws from all.

    Raises:
        UserError: If the temperature is negative or no token may be drawn.
    """

    temperature: float = 0.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}: give 0 for greedy decoding or a positive number.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: give at least 1, or null to draw from all tokens.")

    def __str__(self) -> str:
        """Give the rule in words; empty for greedy decoding."""
        if self.temperature == 0:
            return ""
        return f"temperature {self.temperature:g}" + (f" of the top {self.top_k}" if self.top_k is not None else "")

    def __call__(self, logits: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Choose a token for each row.

        Args:
            logits: ``(..., V)``.
            generator: Source of randomness if the temperature is above 0, on the device of the logits.

        Returns:
            Tokens ``(...) int64``, and the probability of each under the untempered model ``(...) float32``.
        """
        probabilities = logits.float().softmax(dim=-1)
        if self.temperature == 0:
            confidence, tokens = probabilities.max(dim=-1)
            return tokens, confidence
        tempered = self._temper(logits)
        tokens = torch.multinomial(tempered.flatten(0, -2), 1, generator=generator).view(logits.shape[:-1])
        return tokens, probabilities.gather(-1, tokens[..., None])[..., 0]

    def choose(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """Choose tokens, ``(...) int64``, as a call does, with noise of a :class:`NoiseSource`."""
        if noise is None:
            return logits.argmax(dim=-1)
        return (self._temper(logits) / noise).argmax(dim=-1)

    def choose_with_confidence(self, logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Choose tokens with noise that was drawn before, and give what a call gives."""
        probabilities = logits.float().softmax(dim=-1)
        if noise is None:
            confidence, tokens = probabilities.max(dim=-1)
            return tokens, confidence
        tokens = self.choose(logits, noise)
        return tokens, probabilities.gather(-1, tokens[..., None])[..., 0]

    def _temper(self, logits: Tensor) -> Tensor:
        """Give the probabilities that tokens are drawn with."""
        scores = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(self.top_k, dim=-1).values[..., -1:], -torch.inf)
        return scores.softmax(dim=-1)


class NoiseSource:
    """Draws noise when it is asked for, for each row from a generator of its own.

    Rows draw the same numbers alone as in a batch, and the same as :func:`torch.multinomial` does.

    Args:
        generators: One per row, on the device.
        shape: Positions and tokens, ``(n, V)``.
    """

    def __init__(self, generators: Sequence[torch.Generator], shape: tuple[int, int]) -> None:
        self.generators, self.shape = generators, shape

    def __getitem__(self, drawing: int, /) -> Tensor:
        """Draw the noise of the next drawing, whichever it is."""
        races = [torch.empty(self.shape, device=one.device).exponential_(generator=one) for one in self.generators]
        return torch.stack(races)
