"""Dialogues: replies follow from queries, slots are even, and words are unambiguous when heard."""

import itertools
import re
from collections import Counter, defaultdict

import jiwer
import pytest

from datamodules.synthetic import lexicon
from datamodules.synthetic.dialogues import make_dialogues, reply_words
from datamodules.synthetic.espeak import EspeakSynthesizer, Voice
from datamodules.synthetic.intents import Dialogue, default_intents

NUM_TRAIN = 7200

# Letters whose names do not rhyme.
LETTERS = set("AEHILMORS")


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return make_dialogues(7700, seed=0)


def test_replies_are_distinct_and_functions_of_the_query(dialogues: list[Dialogue]) -> None:
    assert len({dialogue.reply for dialogue in dialogues}) == len(dialogues)
    replies = defaultdict(set)
    for dialogue in dialogues:
        replies[dialogue.query].add(dialogue.reply)
    assert all(len(found) == 1 for found in replies.values())


def test_equal_seeds_give_equal_dialogues(dialogues: list[Dialogue]) -> None:
    assert make_dialogues(7700, seed=0) == dialogues
    assert make_dialogues(7700, seed=1) != dialogues


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_reply_word_is_well_trained(seed: int) -> None:
    drawn = make_dialogues(7700, seed)
    counts = Counter(word for dialogue in drawn[:NUM_TRAIN] for word in reply_words(dialogue.reply))
    assert min(counts.values()) >= 85
    assert len(counts) < 300
    assert {word for dialogue in drawn[NUM_TRAIN:] for word in reply_words(dialogue.reply)} <= set(counts)


def test_values_of_a_slot_are_nearly_even(dialogues: list[Dialogue]) -> None:
    counts = Counter(word for dialogue in dialogues for word in reply_words(dialogue.reply))
    for values in (lexicon.NAMES, lexicon.ROOMS, lexicon.DAYS, lexicon.MONTHS, lexicon.FOODS, lexicon.EVENTS):
        found = [counts[value.lower()] for value in values]
        assert max(found) < 1.4 * min(found), dict(zip(values, found, strict=True))


def test_texts_hold_no_digits_and_no_abbreviations(dialogues: list[Dialogue]) -> None:
    for dialogue in dialogues:
        assert re.fullmatch(r"[A-Z][A-Za-z' ,]*\.", dialogue.reply), dialogue.reply
        assert re.fullmatch(r"[A-Z][A-Za-z' ,.?]*[.?]", dialogue.query), dialogue.query


def test_spelled_words_use_the_letters_that_sound_distinct() -> None:
    assert {letter for word in lexicon.SPELLED for letter in word.upper()} <= LETTERS
    assert set(lexicon.CODE_LETTERS) <= LETTERS


def test_closed_facts_are_right(dialogues: list[Dialogue]) -> None:
    answers = defaultdict(set)
    for dialogue in dialogues:
        answers[dialogue.intent].add((*dialogue.query.strip("?.").split(), dialogue.reply.split()[-1].strip(".")))
    for intent, asked, answer in (
        ("month", "December", "January"),
        ("weekday", "Monday", "Sunday"),
        ("capital", "Egypt", "Cairo"),
        ("opposite", "late", "early"),
    ):
        told = {words[-1] for words in answers[intent] if asked in words[:-1]}
        assert told == {answer}, f"{intent} of {asked}"


def test_every_intent_occurs_in_its_share(dialogues: list[Dialogue]) -> None:
    counts = Counter(dialogue.intent for dialogue in dialogues)
    total = sum(intent.share for intent in default_intents())
    for intent in default_intents():
        assert counts[intent.name] == pytest.approx(len(dialogues) * intent.share / total, abs=1)


def test_too_many_dialogues_are_refused() -> None:
    with pytest.raises(ValueError, match="hold .* distinct replies, 1000000 are asked for; ask for fewer"):
        make_dialogues(1_000_000, seed=0)


def test_what_an_intent_cannot_give_others_do() -> None:
    drawn = make_dialogues(12_000, seed=0)
    assert len({dialogue.reply for dialogue in drawn}) == 12_000
    counts = Counter(dialogue.intent for dialogue in drawn)
    for intent in default_intents():
        assert counts[intent.name] <= intent.capacity


def test_new_names_differ_in_sound_from_each_other_and_from_every_other_word() -> None:
    synthesizer, voice = EspeakSynthesizer(), Voice()
    words = {word for dialogue in make_dialogues(3000, seed=0) for word in reply_words(dialogue.reply) if len(word) > 1}
    assert (
        len(words) > 140 and len(set(lexicon.NEW_NAMES)) == 100 and not words & {n.lower() for n in lexicon.NEW_NAMES}
    )
    spoken = {word: " ".join(synthesizer.phonemes(word, voice)) for word in (*lexicon.NEW_NAMES, *words)}
    pairs = [*itertools.combinations(lexicon.NEW_NAMES, 2), *itertools.product(lexicon.NEW_NAMES, words)]
    for one, other in pairs:
        counts = jiwer.process_words(spoken[one], spoken[other])
        assert counts.substitutions + counts.deletions + counts.insertions >= 2, (one, other)


@pytest.mark.parametrize("num_dialogues", [400, 11_500])  # a few of what there is, and nearly everything
def test_replies_that_are_excluded_do_not_come(num_dialogues: int) -> None:
    first = {dialogue.reply for dialogue in make_dialogues(1000, seed=0)}
    drawn = [dialogue.reply for dialogue in make_dialogues(num_dialogues, seed=0, excluded_replies=first)]
    assert len(set(drawn)) == num_dialogues and not first & set(drawn)


def test_what_is_excluded_is_missing_from_what_there_is() -> None:
    capacity = sum(intent.capacity for intent in default_intents())
    first = {dialogue.reply for dialogue in make_dialogues(1000, seed=0)}
    make_dialogues(capacity - 1000, seed=0, excluded_replies=first)
    with pytest.raises(ValueError, match=f"hold {capacity - 1000} distinct replies"):
        make_dialogues(capacity - 999, seed=0, excluded_replies=first)


def test_other_names_take_the_place_of_names(dialogues: list[Dialogue]) -> None:
    drawn = make_dialogues(2000, seed=0, names=lexicon.NEW_NAMES)
    counts = Counter(word for dialogue in drawn for word in reply_words(dialogue.reply))
    assert not {name.lower() for name in lexicon.NAMES} & set(counts)
    assert min(counts[name.lower()] for name in lexicon.NEW_NAMES) >= 10
    assert not {dialogue.reply for dialogue in drawn} & {dialogue.reply for dialogue in dialogues}
