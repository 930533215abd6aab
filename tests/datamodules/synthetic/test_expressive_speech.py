"""Phrases are the text and nothing else, lie in their ranges, and are heard as drawn."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.synthetic.espeak import SAMPLE_RATE, EspeakSynthesizer, Voice
from datamodules.synthetic.expressive_speech import ExpressiveSpeech, Phrase, mean_tempo, place_in_text, to_ssml

TEXTS = st.text(alphabet="ab &<'.", min_size=1).filter(str.strip)


@given(TEXTS, st.integers(0, 9))
def test_phrases_make_up_the_text_and_lie_in_their_ranges(text: str, seed: int) -> None:
    ranges = ExpressiveSpeech(words_per_phrase=(1, 2), tempo_percent=(80, 90), pause_share=1.0, pause_ms=(60, 70))
    phrases = ranges.draw(text, random.Random(seed))
    assert "".join(phrase.text for phrase in phrases) == text
    assert all(1 <= len(phrase.text.split()) <= 2 and 80 <= phrase.tempo_percent <= 90 for phrase in phrases)
    assert all(60 <= phrase.pause_ms <= 70 for phrase in phrases[:-1]) and phrases[-1].pause_ms == 0
    assert 0.8 <= mean_tempo(phrases) <= 0.9 + 1e-9
    assert phrases == ranges.draw(text, random.Random(seed))


@given(TEXTS, st.integers(0, 9))
def test_places_of_the_markup_are_found_in_the_text(text: str, seed: int) -> None:
    phrases = ExpressiveSpeech().draw(text, random.Random(seed))
    ssml, begin = to_ssml(phrases), 0
    for index, phrase in enumerate(phrases):
        opened = to_ssml(phrases[: index + 1])
        place = opened.rindex("<prosody")
        assert place_in_text(ssml, ssml.index(">", place) + 1) == begin
        begin += len(phrase.text)
    assert place_in_text(ssml, len(ssml)) == len(text)


def test_the_mean_tempo_is_words_over_the_time_they_take() -> None:
    assert mean_tempo([Phrase("one two ", 100), Phrase("three four", 50)]) == pytest.approx(4 / (2 + 4))


def test_tempo_and_pauses_are_heard() -> None:
    synthesizer, voice = EspeakSynthesizer(), Voice(rate_wpm=175)
    text = "The red car is fast & new."

    def seconds(*phrases: Phrase) -> float:
        return len(synthesizer.synthesize(text, voice, phrases)) / SAMPLE_RATE

    plain, slow, fast = (seconds(Phrase(text, tempo)) for tempo in (100, 70, 140))
    assert slow > 1.2 * plain > 1.2 * 1.15 * fast
    begin, rest = text[:12], text[12:]
    pauses = [seconds(Phrase(begin, pause_ms=pause_ms), Phrase(rest)) for pause_ms in (100, 300)]
    assert pauses[1] - pauses[0] == pytest.approx(0.2, abs=0.02)
    phrases = [Phrase(begin, pause_ms=300), Phrase(rest)]
    starts = synthesizer.word_starts(text, voice, phrases)
    assert [place for place, _ in starts][:4] == [0, 4, 8, 12]
    assert starts[3][1] - starts[2][1] > 0.5, "the third word and the pause"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words_per_phrase": [0, 2]}, r"words_per_phrase=\[0, 2\]"),
        ({"tempo_percent": [140, 70]}, r"tempo_percent=\[140, 70\]"),
        ({"pause_ms": [60]}, r"pause_ms=\[60\]"),
        ({"pause_share": 1.5}, "pause_share is 1.5"),
    ],
)
def test_ranges_that_are_none_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpressiveSpeech(**settings)
