"""A trained thinker that is to hear better, and to write as before."""

from lightning_modules.thinker.thinker import Thinker


def train_hearing_alone(thinker: Thinker) -> Thinker:
    """Let speech encoder and adaptor of a thinker train on, in front of a language model that stays as it is.

    They have to give what this language model reads, so that what it says to talkers stays nearly the same: talkers
    that were trained behind the thinker can speak for it afterwards, too.

    Args:
        thinker: A trained thinker, which is changed.

    Returns:
        The same thinker.
    """
    thinker.language_model.requires_grad_(False)
    return thinker
