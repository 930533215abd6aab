"""Choosing tokens from logits."""

import torch
from torch import Tensor


class TokenSampler:
    """Chooses tokens and says how sure it is.

    Args:
        temperature: 0 takes the most likely token; otherwise tokens are drawn from ``softmax(logits / temperature)``.
        generator: Source of randomness if the temperature is above 0.

    Raises:
        ValueError: If the temperature is negative.
    """

    def __init__(self, temperature: float = 0.0, generator: torch.Generator | None = None) -> None:
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}: give 0 for greedy decoding or a positive number.")
        self.temperature, self.generator = temperature, generator

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
        tempered = (logits.float() / self.temperature).softmax(dim=-1)
        tokens = torch.multinomial(tempered.flatten(0, -2), 1, generator=self.generator).view(logits.shape[:-1])
        return tokens, probabilities.gather(-1, tokens[..., None])[..., 0]
