"""Finds the talkers that a callback about masks is named for."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule

from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.masked.masked_talker import MaskedTalker


def find_masked_talkers(module: LightningModule, names: Sequence[str], setting: str) -> dict[str, MaskedTalker]:
    """Give the named talkers of a SpeechLLM.

    Args:
        module: The module in training.
        names: Names of talkers.
        setting: Setting that names them, for errors.

    Returns:
        The talkers by name.

    Raises:
        UserError: If a talker is unknown, or predicts no masked tokens.
    """
    assert isinstance(module, SpeechLLM), f"{setting} is for the talkers of a SpeechLLM"
    found: dict[str, MaskedTalker] = {}
    for name in names:
        if name not in module.talkers:
            raise UserError(f"{setting}: there is no talker {name!r}; there are {list(module.talkers)}")
        talker = module.talkers[name]
        if not isinstance(talker, MaskedTalker):
            raise UserError(f"{setting}: the talker {name!r} masks nothing; leave it out")
        found[name] = talker
    return found
