"""The text normaliser that is named beside every word error rate."""

import re
import unicodedata

NORMALIZER_NAME = "lower case, letters a-z, digits and apostrophes, single spaces"
ALPHABET = " 'abcdefghijklmnopqrstuvwxyz0123456789"  # all characters of normalised text

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})


def normalize_text(text: str) -> str:
    """Bring text to the form in which words are compared, described by ``NORMALIZER_NAME``.

    Accents are dropped (``é`` becomes ``e``) and curly apostrophes straightened; every other character separates words.
    Apostrophes outside words are dropped. Numbers stay as they are written: 7 and seven differ.

    Args:
        text: Any text.

    Returns:
        Words of a-z, 0-9 and inner apostrophes, one space between them; "" if nothing is left.
    """
    plain = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = re.sub(r"[^a-z0-9']+", " ", plain).split()
    return " ".join(stripped for word in words if (stripped := word.strip("'")))
