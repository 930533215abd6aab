"""A query from outside is brought to the level and the length of those that thinkers are trained on."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.synthetic.espeak import EspeakSynthesizer, Voice
from experiments.jobs.speaking.queries import prepared_query

SPEECH = np.random.default_rng(0).normal(0.0, 0.1, 16_000).astype(np.float32)


@settings(max_examples=40)
@given(st.floats(-40, 15), st.integers(0, 60), st.integers(0, 60))
def test_level_and_silence_around_do_not_matter(gain_db: float, before: int, behind: int) -> None:
    frames = [np.zeros(320 * count, np.float32) for count in (before, behind)]
    quiet = (10 ** (gain_db / 20) * SPEECH).astype(np.float32)
    found = prepared_query(np.concatenate([frames[0], quiet, frames[1]]))
    assert 0 <= len(found) - len(SPEECH) <= 2 * 640 and np.abs(found).max() <= 1.0
    start = min(640, 320 * before)
    scale = found[start : start + 16_000] / SPEECH
    np.testing.assert_allclose(scale, scale[0], rtol=1e-4)  # nothing but louder or quieter
    assert -3.1 < 20 * np.log10(scale[0]) < 3.1
    np.testing.assert_allclose(prepared_query(found), found, rtol=1e-5)


def test_queries_of_the_corpora_stay_as_they_are() -> None:
    synthesizer = EspeakSynthesizer()
    synthesizer.reset()  # what this process spoke before would change lengths by a few samples
    for voice in (Voice(variant="m3", rate_wpm=165), Voice(variant="f2", rate_wpm=150), Voice("en", "m7", 180)):
        query = synthesizer.synthesize("Remind Lucy to call the bank on Friday.", voice)
        found = prepared_query(query)
        assert len(found) == len(query), "the corpora leave that much silence, too"
        np.testing.assert_array_equal(found, query)


def test_silence_is_not_made_loud() -> None:
    nothing = np.zeros(5_000, np.float32)
    assert prepared_query(nothing) is nothing
