"""The parts of a speech LLM that train: the thinker, and talkers by name."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from lightning_modules.errors import UserError

THINKER = "thinker"  # its TensorBoard run

_Part = TypeVar("_Part")


def present_talkers(given: Mapping[str, _Part | None], trains_thinker: bool, named: Iterable[str]) -> dict[str, _Part]:
    """Give the talkers that are there; settings may name one that is left out, but none that nobody knows.

    Args:
        given: Talkers by name, None for one that is left out.
        trains_thinker: Whether the thinker learns, so that there need be no talker.
        named: Talkers that settings name.

    Raises:
        UserError: If nothing trains, a name is taken, or a setting names an unknown talker.
    """
    talkers = {name: talker for name, talker in given.items() if talker is not None}
    if not talkers and not trains_thinker:
        raise UserError("Nothing to train: give at least one talker or a thinker_objective.")
    if THINKER in talkers:
        raise UserError(f"A talker cannot be called {THINKER!r}: that is the thinker's TensorBoard run.")
    if unknown := sorted(set(named) - set(given)):
        raise UserError(f"talker_learning_rates name {unknown}, but the talkers are {sorted(given)}.")
    return talkers
