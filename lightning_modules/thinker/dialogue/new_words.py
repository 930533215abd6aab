"""Words of one's own, such as names: one token each, in place of pieces that a language model hardly knows."""

import copy
import re
from collections.abc import Sequence
from typing import Protocol, TypeVar

from tokenizers import AddedToken, Regex, decoders
from transformers import PreTrainedTokenizerBase

from lightning_modules.errors import UserError

_WORD = r"\w(?:[\w'’-]*\w)?"


class TakesWords(Protocol):
    """What can be given new words: a thinker."""

    def add_words(self, words: Sequence[str]) -> None:
        """Make each word one token from now on."""
        ...


Speaker = TypeVar("Speaker", bound=TakesWords)


def with_new_words(thinker: Speaker, words: Sequence[str]) -> Speaker:
    """Give a trained thinker new words, which fine-tuning then teaches it.

    A name in three pieces is three things to hear, to write and to speak, and moves all text behind it to other places
    than those where talkers learned to read it; as one token it is one thing, and leaves the rest where it was.

    Args:
        thinker: A trained thinker; its embeddings and its output head must train with it, since those of the new tokens
            are untrained.
        words: Words that its tokenizer writes in pieces.

    Returns:
        The same thinker.

    Raises:
        UserError: If a word cannot be a token, or the language model has no embeddings left for it.
    """
    thinker.add_words(words)
    return thinker


def add_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> PreTrainedTokenizerBase:
    """Copy a tokenizer and give it words, each one token wherever it stands in a sentence.

    A new token takes the space before it along, if there is one, and is decoded with a space behind a letter, a digit
    or a mark, so that a word has the same token at the beginning of a text and inside it.

    Args:
        tokenizer: A fast tokenizer.
        words: Words of letters, digits, apostrophes and hyphens.

    Returns:
        A tokenizer that ``save_pretrained`` writes as any other.

    Raises:
        UserError: If a word is none, occurs twice or is a token already, or the tokenizer is a slow one.
    """
    odd = sorted({word for word in words if not re.fullmatch(_WORD, word)})
    twice = sorted({word for word in words if list(words).count(word) > 1})
    if odd or twice:
        raise UserError(f"words: {(odd or twice)[0]!r} {'is no single word' if odd else 'occurs twice'}")
    known = sorted(set(words) & set(tokenizer.get_vocab()))
    if known:
        raise UserError(f"words: {known[0]!r} is a token of {tokenizer.name_or_path!r} already; leave it out")
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(f"words: {tokenizer.name_or_path!r} is no fast tokenizer; give the fast one of its family")
    if not words:
        return tokenizer
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens([AddedToken(word, lstrip=True, single_word=True, normalized=False) for word in words])
    backend = extended.backend_tokenizer
    one_of = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    space = decoders.Replace(Regex(rf"(?<=[\w.,;:!?])(?=(?:{one_of})+(?!\w))"), " ")
    backend.decoder = decoders.Sequence([*([] if backend.decoder is None else [backend.decoder]), space])
    return extended
