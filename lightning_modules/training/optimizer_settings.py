"""Checks of the optimizer's settings, which every module that trains has."""

from collections.abc import Mapping

from lightning_modules.number_checks import MAX_SEED, require_at_least, require_positive, require_within


def check_optimizer_settings(
    learning_rates: Mapping[str, float], weight_decay: float, warmup_steps: int, seed: int
) -> None:
    """Refuse settings that no training can use.

    Args:
        learning_rates: Peak learning rates, by the names of their settings.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps of linear warm-up.
        seed: Seed of whatever the module draws.

    Raises:
        UserError: If a learning rate is not positive, another number is negative, the seed has more than 32 bits, or a
            number is not finite.
    """
    require_positive(**learning_rates)
    require_at_least(0, weight_decay=weight_decay, warmup_steps=warmup_steps)
    require_within(0, MAX_SEED, seed=seed)
