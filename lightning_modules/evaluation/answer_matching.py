"""Scores of closed answers: whether a reply says the right one, makes the right choice, or repeats what it should."""

import re
import unicodedata
from collections.abc import Sequence

import jiwer

MATCHER_NAME = "lower case, letters and digits of any script, no articles, numbers below 100 as digits, version 1"
ARTICLES = frozenset(("a", "an", "the"))
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBERS = {word: number for number, word in enumerate(_SMALL)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)}

# Scripts without spaces: each character is a word of its own.
_SPACELESS = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_APOSTROPHES = re.compile("['\u2019\u02bc`]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL = re.compile(r"(?<=\d)\.(?=\d)")
_POINT = "\ue000"  # stands for a decimal point while all other marks become spaces


def words_to_match(text: str) -> list[str]:
    """Bring text of any language to words that can be compared, described by ``MATCHER_NAME``.

    Accents and apostrophes are dropped, thousands lose their commas, and decimals keep their points.

    Args:
        text: Any text.

    Returns:
        The words.
    """
    plain = unicodedata.normalize("NFKD", _APOSTROPHES.sub("", text)).casefold()
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    plain = _DECIMAL.sub(_POINT, _THOUSANDS.sub("", unicodedata.normalize("NFKC", plain)))
    kept = "".join(char if char.isalnum() or char == _POINT else " " for char in _SPACELESS.sub(r" \1 ", plain))
    return _with_digits([word for word in kept.replace(_POINT, ".").split() if word not in ARTICLES])


def _with_digits(words: list[str]) -> list[str]:
    """Write numbers below 100 as digits, so that "twenty five" is 25."""
    written: list[str] = []
    is_ten = False  # the word before is a bare ten
    for word in words:
        number = NUMBERS.get(word)
        if number is not None and is_ten and 0 < number < 10:
            written[-1] = str(int(written[-1]) + number)
        else:
            written.append(word if number is None else str(number))
        is_ten = number is not None and number >= 20
    return written


def matches_alias(reply: str, aliases: Sequence[str]) -> bool:
    """Tell whether a reply says one of the right answers.

    Args:
        reply: What was answered, a whole sentence or the bare answer.
        aliases: Right answers, each enough by itself.

    Returns:
        True if the words of an alias stand in the reply, in order and with nothing between them. An alias of articles
        alone matches nothing.
    """
    said = words_to_match(reply)
    for alias in aliases:
        wanted = words_to_match(alias)
        if wanted and any(said[start : start + len(wanted)] == wanted for start in range(len(said))):
            return True
    return False


def chosen_letter(reply: str) -> str | None:
    """Find which choice a reply makes.

    Looked for in this order: a letter that the reply consists of or begins with; the last letter behind "answer",
    "option" or "choice"; the only letter in parentheses, or the only capital letter but A and I that stands alone.

    Args:
        reply: What was answered.

    Returns:
        "A" to "E"; None if the reply makes no choice, or one that cannot be told.
    """
    text = reply.strip().strip("*\"'")
    first = re.match(r"\(?([A-Ea-e])(?:\)|[.:,]|\s*$)", text)
    if first:
        return first[1].upper()
    named = re.findall(r"(?i:answer|option|choice)\b(?:\s+(?i:is|would be|should be))?[\s:*\"'(]*([A-E])\b(?!')", text)
    if named:
        return str(named[-1])
    for pattern in (r"\(([A-Ea-e])\)", r"(?<![\w'])([B-E])(?![\w'])"):
        alone = {letter.upper() for letter in re.findall(pattern, text)}
        if len(alone) == 1:
            return alone.pop()
    return None


def makes_choice(reply: str, references: Sequence[str]) -> bool | None:
    """Tell whether a reply makes the right choice.

    Args:
        reply: What was answered.
        references: The right choice, a letter such as "B" or "(b)", or "yes" or "no".

    Returns:
        None if the reply makes no choice: it is wrong, but told apart.
    """
    wanted = {reference.strip().strip("().").casefold() for reference in references}
    if wanted <= {"yes", "no"}:
        found = next((word for word in words_to_match(reply) if word in ("yes", "no")), None)
    else:
        letter = chosen_letter(reply)
        found = None if letter is None else letter.casefold()
    return None if found is None else found in wanted


def repeated_share(reply: str, references: Sequence[str]) -> float:
    """Give how much of a text a reply repeats.

    Args:
        reply: What was answered.
        references: Texts that are to be repeated, of which the nearest counts.

    Returns:
        1 less the word error rate (in scripts without spaces that of characters), at least 0.
    """
    said, best = words_to_match(reply), 0.0
    for reference in references:
        wanted = words_to_match(reference)
        if wanted:
            best = max(best, 1.0 - jiwer.wer(" ".join(wanted), " ".join(said)))
    return best
