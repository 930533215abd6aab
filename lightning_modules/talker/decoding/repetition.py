"""A penalty on repeating recent tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.number_checks import require_at_least, require_positive


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divides the logits of recent tokens, once for each time that a token came.

    Attributes:
        factor: What a logit is divided by; 1 changes nothing.
        window: Recent tokens that are looked at.
        ahead: Whether it holds, too, for the tokens that a pass predicts behind the next one.

    Raises:
        UserError: If a number is out of range.

    Reference: the released decoder of VocalNet (arXiv 2504.04060), which divides without regard to a logit's sign.
    """

    factor: float = 2.0
    window: int = 6
    ahead: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(**{"repetition.factor": self.factor})
        require_at_least(0, **{"repetition.window": self.window})

    def __str__(self) -> str:
        """Give the rule in words."""
        return f"last {self.window} tokens' logits / {self.factor:g}" + ("" if self.ahead else " for the next token")

    def __call__(self, logits: Tensor, history: Tensor) -> Tensor:
        """Lower the logits of the last tokens of a history.

        Args:
            logits: ``(V,)``.
            history: Tokens in their order, ``(n,) int64``.

        Returns:
            ``(V,)``.
        """
        recent = history[max(0, len(history) - self.window) :]
        num_times = torch.bincount(recent, minlength=logits.shape[-1])
        return logits / self.factor**num_times
