"""Which words of an utterance were heard, which were taken for others, left out or added."""

from dataclasses import dataclass

import jiwer

from lightning_modules.evaluation.text_normalization import normalize_text

EQUAL, SUBSTITUTION, DELETION, INSERTION = "equal", "substitution", "deletion", "insertion"
_KINDS = {"equal": EQUAL, "substitute": SUBSTITUTION, "delete": DELETION, "insert": INSERTION}


@dataclass(frozen=True)
class AlignedWords:
    """Words in a row that were heard alike, or all wrong in the same way.

    Attributes:
        kind: One of "equal", "substitution", "deletion" and "insertion".
        said: What was to be said, words with spaces; empty for an insertion.
        heard: What was heard; empty for a deletion.
    """

    kind: str
    said: str
    heard: str


def align_words(said: str, heard: str) -> list[AlignedWords]:
    """Align what was heard with what was to be said, as the word error rate does.

    Args:
        said: Any text.
        heard: Any text.

    Returns:
        Both texts after :func:`normalize_text`, piece by piece in order; each word that is not in an equal piece is an
        error of the word error rate, a substituted pair of words one.
    """
    said, heard = normalize_text(said), normalize_text(heard)
    if not said:
        return [AlignedWords(INSERTION, "", heard)] if heard else []
    aligned = jiwer.process_words(said, heard)
    said_words, heard_words = said.split(), heard.split()
    return [
        AlignedWords(
            _KINDS[piece.type],
            " ".join(said_words[piece.ref_start_idx : piece.ref_end_idx]),
            " ".join(heard_words[piece.hyp_start_idx : piece.hyp_end_idx]),
        )
        for piece in aligned.alignments[0]
    ]


def repeated_share(said: str, heard: str, longest: int = 4) -> float:
    """Give the share of heard words that say again what was just said, beyond what the text itself says twice.

    Args:
        said: What was to be said.
        heard: What was heard.
        longest: Most words that are looked for as one repeated phrase.

    Returns:
        Repeated words over all heard words; 0 if nothing was heard.
    """
    words = normalize_text(heard).split()
    if not words:
        return 0.0
    wanted = _count_repeated(normalize_text(said).split(), longest)
    return max(0, _count_repeated(words, longest) - wanted) / len(words)


def _count_repeated(words: list[str], longest: int) -> int:
    repeated: set[int] = set()
    for size in range(1, longest + 1):
        for start in range(size, len(words) - size + 1):
            if words[start : start + size] == words[start - size : start]:
                repeated.update(range(start, start + size))
    return len(repeated)
