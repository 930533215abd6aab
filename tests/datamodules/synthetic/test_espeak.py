"""Speech by eSpeak: the right format, trimmed, and the same whatever was said before."""

import numpy as np
import pytest

from datamodules.synthetic.espeak import SAMPLE_RATE, EspeakSynthesizer, Voice, trim_silence

MARGIN_S = 0.04
TEXT = "Hello Tom, the alarm will ring."


@pytest.fixture(scope="module")
def synthesizer() -> EspeakSynthesizer:
    return EspeakSynthesizer(margin_s=MARGIN_S)


@pytest.mark.parametrize("voice", [Voice(), Voice("en", "f2", 150, 70), Voice("en-gb-scotland", "m7")])
def test_speech_is_float_and_lies_between_fixed_margins(synthesizer: EspeakSynthesizer, voice: Voice) -> None:
    speech = synthesizer.synthesize(TEXT, voice)
    assert speech.dtype == np.float32
    assert speech.ndim == 1
    assert 1.0 < speech.size / SAMPLE_RATE < 4.0
    peak = np.abs(speech).max()
    assert 0.1 < peak <= 1.0
    loud = np.flatnonzero(np.abs(speech) > 0.01 * peak)
    assert loud[0] == speech.size - 1 - loud[-1] == round(MARGIN_S * SAMPLE_RATE)


def test_faster_speech_is_shorter_and_other_voices_sound_different(synthesizer: EspeakSynthesizer) -> None:
    slow, fast = (synthesizer.synthesize(TEXT, Voice(rate_wpm=rate)) for rate in (120, 240))
    assert fast.size < 0.7 * slow.size
    man, woman = (synthesizer.synthesize(TEXT, Voice(variant=variant)) for variant in ("m1", "f4"))
    size = min(man.size, woman.size)
    assert np.abs(man[:size] - woman[:size]).max() > 0.1


@pytest.mark.parametrize("variant", ["", "f5", "m3"])
def test_after_a_reset_nothing_is_left_of_what_was_said(synthesizer: EspeakSynthesizer, variant: str) -> None:
    synthesizer.reset()
    first = synthesizer.synthesize(TEXT, Voice(variant=variant))
    synthesizer.synthesize("Something else.", Voice(variant="f2", pitch=80))
    synthesizer.reset()
    assert np.array_equal(synthesizer.synthesize(TEXT, Voice(variant=variant)), first)


def test_letters_are_named(synthesizer: EspeakSynthesizer) -> None:
    name = synthesizer.synthesize("Say A, O.", Voice())
    article = synthesizer.synthesize("Say a O.", Voice())
    assert name.size > 1.1 * article.size


def test_unknown_voice_is_refused(synthesizer: EspeakSynthesizer) -> None:
    with pytest.raises(ValueError, match="no voice 'xx-nowhere'"):
        synthesizer.synthesize(TEXT, Voice("xx-nowhere"))


@pytest.mark.parametrize("text", ["", " ", "..."])
def test_silence_is_refused(synthesizer: EspeakSynthesizer, text: str) -> None:
    with pytest.raises(ValueError, match="is silent"):
        synthesizer.synthesize(text, Voice())


@pytest.mark.parametrize("settings", [{"rate_wpm": 20}, {"pitch": 100}, {"pitch_range": -1}])
def test_voices_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Voice(**settings)


def test_trimming_cuts_or_pads_to_the_margin() -> None:
    loud = np.ones(100, np.float32)
    margin = np.zeros(round(MARGIN_S * SAMPLE_RATE), np.float32)
    expected = np.concatenate([margin, loud, margin])
    for silence in (0, 7, 5000):
        padded = np.pad(loud, (silence, 2 * silence))
        assert np.array_equal(trim_silence(padded, MARGIN_S), expected)
    assert trim_silence(np.zeros(50, np.float32), MARGIN_S).size == 0


def test_words_begin_where_they_are_heard() -> None:
    """A later word begins as many samples later as a longer pause before it is long."""
    synthesizer, text = EspeakSynthesizer(), "One two, three."
    starts = synthesizer.word_starts(text, Voice())
    assert [text[place:].split()[0].strip(",.") for place, _ in starts] == ["One", "two", "three"]
    seconds = [second for _, second in starts]
    assert seconds == sorted(seconds) and -0.05 < seconds[0] < 0.06
    waveform = synthesizer.synthesize(text, Voice())
    assert seconds[-1] < len(waveform) / SAMPLE_RATE
    slow = [second for _, second in synthesizer.word_starts(text, Voice(rate_wpm=100))]
    assert slow[2] - slow[1] > 1.3 * (seconds[2] - seconds[1])
    # Before the third word there is a comma: silence.
    before = waveform[round((seconds[2] - 0.08) * SAMPLE_RATE) : round((seconds[2] - 0.02) * SAMPLE_RATE)]
    assert np.abs(before).max() < 0.2 * np.abs(waveform).max()
