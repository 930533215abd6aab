"""Kinds of queries are told by the replies."""

import random

import pytest

from callbacks.comparison.query_kinds import QueryKinds
from datamodules.synthetic.intents import default_intents, reply_patterns
from lightning_modules.errors import UserError


def test_every_reply_of_the_synthetic_corpus_is_of_its_own_intent() -> None:
    kinds, drawn = QueryKinds(reply_patterns()), random.Random(0)
    intents = default_intents(["Zoe", "Mary Ann"])
    for intent in intents:
        for _ in range(20):
            assert kinds(intent.reply_to(tuple(drawn.randrange(len(slot)) for slot in intent.slots))) == intent.name
    assert len({intent.name for intent in intents}) > 10


def test_the_first_pattern_that_matches_the_whole_reply_names_it() -> None:
    kinds = QueryKinds({"yes": "yes.*", "short": r"\w+"})
    assert [kinds(reply) for reply in ("Yes, sir", "yes", "no", "no no")] == ["yes", "yes", "short", "other"]


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"the pattern '\(' of the kind odd is not valid"):
        QueryKinds({"odd": "("})
