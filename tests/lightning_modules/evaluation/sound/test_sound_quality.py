"""Changes at the borders of chunks show where there are some, and nowhere else."""

import math

import pytest
import torch
from torch import Tensor

from lightning_modules.evaluation.sound.sound_quality import (
    Drift,
    SoundMeter,
    SoundQuality,
    loudness_drift,
    timbre_drift,
)

RATE_HZ = 16_000
CHUNK_S = 0.64


@pytest.fixture(scope="module")
def meter() -> SoundMeter:
    return SoundMeter()


def noise(num_chunks: int, seed: int) -> Tensor:
    """Give noise whose loudness wavers, as speech does."""
    generator = torch.Generator().manual_seed(seed)
    num_samples = round(num_chunks * CHUNK_S * RATE_HZ)
    wavering = torch.nn.functional.interpolate(torch.rand(1, 1, num_samples // 1600, generator=generator), num_samples)
    return 0.1 * torch.randn(num_samples, generator=generator) * (0.5 + wavering[0, 0])


def change_chunks(waveform: Tensor, change: str) -> Tensor:
    """Let every other chunk be louder, or duller."""
    changed = waveform.clone().view(-1, round(CHUNK_S * RATE_HZ))
    if change == "louder":
        changed[1::2] *= 4
    else:
        dull = torch.nn.functional.avg_pool1d(changed[1::2, None], 9, 1, 4)[:, 0]
        changed[1::2] = dull * changed[1::2].std() / dull.std()
    return changed.view(-1)


def measure(meter: SoundMeter, *changes: str) -> list[SoundQuality]:
    waveforms = [noise(6, seed) for seed in range(6)]
    for change in changes:
        waveforms = [change_chunks(waveform, change) for waveform in waveforms]
    return [meter(waveform, CHUNK_S) for waveform in waveforms]


def test_speech_without_borders_changes_as_much_there_as_elsewhere(meter: SoundMeter) -> None:
    for drift in (timbre_drift(measure(meter)), loudness_drift(measure(meter))):
        assert drift is not None and drift.interval[0] < 1 < drift.interval[1]
        assert drift.ratio == pytest.approx(1, abs=0.3)


def test_a_voice_that_changes_at_borders_is_told_from_a_level_that_does(meter: SoundMeter) -> None:
    dull, loud = measure(meter, "duller"), measure(meter, "louder")
    of_dull, of_loud = timbre_drift(dull), loudness_drift(loud)
    assert of_dull is not None and of_dull.interval[0] > 2
    assert of_loud is not None and of_loud.interval[0] > 2
    other = timbre_drift(loud)
    assert other is not None and other.ratio < 1.3, "louder is not another voice"


def test_other_borders_see_nothing_of_it(meter: SoundMeter) -> None:
    shifted = [meter(change_chunks(noise(6, seed), "duller")[RATE_HZ // 4 :], CHUNK_S) for seed in range(6)]
    drift = timbre_drift(shifted)
    assert drift is not None and drift.ratio < 1.1


def test_silence_is_counted_and_compares_with_nothing(meter: SoundMeter) -> None:
    tone = 0.1 * torch.sin(torch.arange(RATE_HZ) * 0.3)
    half = meter(torch.cat([tone, torch.zeros(RATE_HZ)]), CHUNK_S)
    assert half.silent_share == pytest.approx(0.5, abs=0.02)
    assert meter(torch.zeros(0), CHUNK_S) == SoundQuality(0.0, 0.0, 0, 0.0, 0.0, 0, 1.0)
    digital = meter(torch.zeros(RATE_HZ), CHUNK_S)
    assert digital.silent_share == 1.0 and digital.num_borders == digital.num_inner == 0
    assert timbre_drift([digital]) is None and loudness_drift([]) is None
    short = meter(tone[:1000], CHUNK_S)
    assert short.num_inner == 0 and short.silent_share == 0.0


def test_means_weigh_borders_and_not_utterances() -> None:
    many, few = SoundQuality(30.0, 3.0, 10, 20.0, 20.0, 10, 0.0), SoundQuality(1.0, 9.0, 1, 90.0, 10.0, 90, 0.0)
    drift = timbre_drift([many, few])
    assert drift is not None and drift.ratio == pytest.approx((31 / 11) / (110 / 100))
    assert timbre_drift([many]) == Drift(1.5, (1.5, 1.5))
    assert not math.isnan(sum(drift.interval))
