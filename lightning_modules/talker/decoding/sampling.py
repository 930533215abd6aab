"""Choosing tokens from logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.errors import UserError


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
        scores = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(self.top_k, dim=-1).values[..., -1:], -torch.inf)
        tempered = scores.softmax(dim=-1)
        tokens = torch.multinomial(tempered.flatten(0, -2), 1, generator=generator).view(logits.shape[:-1])
        return tokens, probabilities.gather(-1, tokens[..., None])[..., 0]
