"""The weight of an objective over training."""

from dataclasses import dataclass

from lightning_modules.number_checks import require_at_least


@dataclass(frozen=True)
class Ramp:
    """A weight that is 0 at first and then grows linearly to its final value.

    A codec whose codes do not mean anything yet collapses to few of them under the full weight.

    Args:
        weight: The final value.
        start_step: Steps with a weight of 0.
        num_steps: Steps over which it grows after them; 0 for the final value at once.

    Raises:
        UserError: If a number is negative or not finite.
    """

    weight: float
    start_step: int = 0
    num_steps: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least(0, weight=self.weight, start_step=self.start_step, num_steps=self.num_steps)

    def at(self, step: int) -> float:
        """Give the weight at a global step."""
        if step < self.start_step:
            return 0.0
        return self.weight * min(1.0, (step - self.start_step + 1) / max(1, self.num_steps))
