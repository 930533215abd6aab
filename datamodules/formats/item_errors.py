"""What can be wrong with an item of a corpus, by kind, and the checks of its texts."""

import re

from lightning_modules.errors import UserError


class ItemError(UserError):
    """What is wrong with one item of a list.

    Args:
        kind: One of a few words to count by: "layout", "empty_reply", "special_token", "path_outside_corpus", or a word
            of those who check more.
        problem: What is wrong, without the name of the item.
    """

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


def require_unicode(which: str, text: str) -> None:
    """Refuse text that cannot be written as UTF-8.

    Args:
        which: What the text is, for the error.
        text: The text.

    Raises:
        ItemError: If it holds half of a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ItemError("layout", f"{which} is not valid Unicode ({error}); fix its encoding") from error


def require_clean(which: str, text: str, special_tokens: re.Pattern[str] | None) -> None:
    """Refuse text that cannot be trained on.

    Args:
        which: What the text is, for the error.
        text: The text.
        special_tokens: What it may not hold; not checked if None.

    Raises:
        ItemError: If it is not valid Unicode, or holds a special token.
    """
    require_unicode(which, text)
    special = special_tokens.search(text) if special_tokens is not None else None
    if special:
        raise ItemError("special_token", f"{which} holds the special token {special[0]!r}; remove it")
