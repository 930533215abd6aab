"""Checks of the numbers that users set; each error names the setting, its value and what to give instead."""

import math

from lightning_modules.errors import UserError

# the largest that Lightning and NumPy take
MAX_SEED = 2**32 - 1


def require_at_least(minimum: float, **values: float | None) -> None:
    """Refuse numbers below a minimum; None passes, NaN and infinity do not.

    Args:
        minimum: The least that is allowed.
        values: The numbers by the names of their settings.

    Raises:
        UserError: If a number is too small or not finite.
    """
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value >= minimum):
            raise UserError(f"{name} is {value}; give a finite number of at least {minimum:g}")


def require_positive(**values: float | None) -> None:
    """Refuse 0 and negative numbers; None passes, NaN and infinity do not.

    Args:
        values: The numbers by the names of their settings.

    Raises:
        UserError: If a number is not positive or not finite.
    """
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} is {value}; give a finite number above 0")


def require_within(low: float, high: float, **values: float | None) -> None:
    """Refuse numbers outside a range; None passes, NaN does not.

    Args:
        low: The least that is allowed.
        high: The most that is allowed.
        values: The numbers by the names of their settings.

    Raises:
        UserError: If a number lies outside.
    """
    for name, value in values.items():
        if value is not None and not low <= value <= high:
            raise UserError(f"{name} is {value}; give a number from {low:.10g} to {high:.10g}")


def require_below_one(**values: float | None) -> None:
    """Refuse numbers outside ``[0, 1)``, such as a dropout that leaves nothing; None passes.

    Args:
        values: The numbers by the names of their settings.

    Raises:
        UserError: If a number is negative, 1 or more.
    """
    for name, value in values.items():
        if value is not None and not 0.0 <= value < 1.0:
            raise UserError(f"{name} is {value}; give a number of at least 0 and below 1")


def require_divisible(width_name: str, width: int, parts_name: str, num_parts: int) -> None:
    """Refuse a width that cannot be split into equal parts.

    Args:
        width_name: Setting of the width.
        width: What is split.
        parts_name: Setting of the number of parts.
        num_parts: Equal parts, at least 1.

    Raises:
        UserError: If the width is no multiple of the number of parts.
    """
    if width % num_parts:
        raise UserError(
            f"{width_name} is {width}, which {parts_name} {num_parts} does not divide; "
            f"give a multiple of {num_parts}, such as {num_parts * max(1, round(width / num_parts))}"
        )
