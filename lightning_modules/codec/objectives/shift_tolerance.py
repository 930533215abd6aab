"""Codes that stay as they are when speech begins a little earlier or later."""

import torch
from torch import Tensor

from lightning_modules.codec.objectives.ramp import Ramp
from lightning_modules.number_checks import require_at_least, require_positive, require_within
from lightning_modules.talker.losses import LossTerm


class ShiftTolerance:
    """Compares the codes of speech with those of the same speech moved by less than a token.

    A word's tokens depend on where it lies on the token grid. Whoever predicts several tokens at once has to agree on
    that phase, and pays for every token that it changes.

    Args:
        ramp: Its weight in the loss.
        max_shift_ms: Largest move in either direction, in milliseconds.
        max_rows: Crops of a batch that are moved, drawn at random; all if None.

    Raises:
        UserError: If the move is not positive, or above a second, or no row is left.
    """

    def __init__(self, ramp: Ramp, max_shift_ms: float = 20.0, max_rows: int | None = None) -> None:
        require_at_least(1, max_rows=max_rows)
        require_positive(max_shift_ms=max_shift_ms)
        require_within(0, 1_000, max_shift_ms=max_shift_ms)
        self.ramp, self.max_shift_ms, self.max_rows = ramp, max_shift_ms, max_rows

    def draw_shifts(self, count: int, sample_rate: int, generator: torch.Generator) -> Tensor:
        """Draw moves in samples, uniform up to the largest in either direction: ``(count,) int64``."""
        share = 2 * torch.rand(count, generator=generator) - 1
        return (share * self.max_shift_ms * sample_rate / 1_000).round().long()

    def __call__(self, codes: Tensor, moved: Tensor, step: int) -> LossTerm:
        """Average the squared distance of codes and those of moved speech; 0 if they agree.

        Args:
            codes: ``(B, T, D) float``, with a gradient.
            moved: The same of moved speech.
            step: The global step, which tells the weight.
        """
        return LossTerm((codes - moved).square().mean(), torch.tensor(len(codes)), self.ramp.at(step))
