"""Choosing tokens from logits."""

import torch
from torch import Tensor

from lightning_modules.errors import UserError


class TokenSampler:
    """Chooses tokens and says how sure it is.

    Args:
        temperature: 0 takes the most likely token; otherwise tokens are drawn from ``softmax(logits / temperature)``.
        top_k: Draw from this many most likely tokens only; None draws from all.
        generator: Source of randomness if the temperature is above 0.

    Raises:
        UserError: If the temperature is negative or no token may be drawn.
    """

    def __init__(
        self, temperature: float = 0.0, generator: torch.Generator | None = None, top_k: int | None = None
    ) -> None:
        if temperature < 0:
            raise UserError(f"temperature is {temperature}: give 0 for greedy decoding or a positive number.")
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k is {top_k}: give at least 1, or null to draw from all tokens.")
        self.temperature, self.generator, self.top_k = temperature, generator, top_k

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a token for each row.

        Args:
            logits: ``(..., V)``.

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
        tokens = torch.multinomial(tempered.flatten(0, -2), 1, generator=self.generator).view(logits.shape[:-1])
        return tokens, probabilities.gather(-1, tokens[..., None])[..., 0]
