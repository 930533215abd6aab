"""A spoken query becomes one waveform, however it is sent, and ends where its speaker falls silent."""

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.synthetic.espeak import EspeakSynthesizer, Voice
from experiments.live.listening import QueryRecorder
from experiments.live.protocol import Listen
from lightning_modules.errors import UserError


def pcm(waveform: np.ndarray) -> bytes:
    return (waveform * 32767).astype("<i2").tobytes()


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000).astype(np.float32)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 7_999), max_size=5), st.sampled_from([16_000, 44_100, 48_000]))
def test_frames_of_any_sizes_give_the_same_waveform(cuts: list[int], rate_hz: int) -> None:
    frames = np.split(NOISE, sorted(set(cuts)))
    recorder, whole = (QueryRecorder(Listen(["ntp"], rate_hz), 30.0) for _ in range(2))
    for frame in frames:
        assert not recorder.push(pcm(frame))
    whole.push(pcm(NOISE))
    np.testing.assert_allclose(recorder.finish(), whole.finish(), atol=1e-6)


def test_other_rates_are_resampled() -> None:
    recorder = QueryRecorder(Listen(["ntp"], 48_000, "float32"), 30.0)
    recorder.push(NOISE.tobytes())
    np.testing.assert_allclose(recorder.finish(), soxr.resample(NOISE, 48_000, 16_000), atol=1e-3)


def test_silence_ends_a_query_and_is_cut_off() -> None:
    speech = EspeakSynthesizer().synthesize("Remind Lucy to call the doctor, on Friday.", Voice())
    silence = np.zeros(24_000, np.float32)
    recorder = QueryRecorder(Listen(["ntp"], auto_end=True), 30.0)
    sent = np.concatenate([silence, speech, silence])
    ended = [recorder.push(pcm(frame)) for frame in np.array_split(sent, 80)]
    end_s = (ended.index(True) + 1) * len(sent) / 80 / 16_000
    assert 1.5 + len(speech) / 16_000 < end_s < 1.5 + len(speech) / 16_000 + 1.1, "not within the query, soon behind it"
    heard = recorder.finish()
    assert abs(len(heard) - len(speech)) < 0.45 * 16_000
    position = int(np.argmax(np.correlate(heard, speech[4000:12_000], "valid")))
    np.testing.assert_allclose(heard[position : position + 8000], speech[4000:12_000], atol=1e-3)


def test_a_query_that_cannot_be_answered_is_refused() -> None:
    with pytest.raises(UserError, match="longer than 0.4 s"):
        QueryRecorder(Listen(["ntp"]), 0.4).push(pcm(NOISE))
    with pytest.raises(UserError, match=r"shorter than 0.1 s; hold the button"):
        QueryRecorder(Listen(["ntp"]), 30.0).finish()
    quiet = QueryRecorder(Listen(["ntp"], auto_end=True), 30.0)
    quiet.push(pcm(np.zeros(8_000, np.float32)))
    with pytest.raises(UserError, match="no speech was heard"):
        quiet.finish()
