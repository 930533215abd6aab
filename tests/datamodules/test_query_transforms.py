"""What queries are changed by: lengths, bands and speeds."""

import numpy as np
import pytest
import torch

from datamodules.query_augmentation import QueryAugmentation
from datamodules.query_transforms import LeadingSilence, NarrowBand, SpeedChange

RATE_HZ = 16_000


def tone(hz: float, seconds: float = 0.5) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hz * torch.arange(round(seconds * RATE_HZ)) / RATE_HZ)


def loudest_hz(samples: torch.Tensor) -> float:
    return float(torch.fft.rfft(samples).abs().argmax()) * RATE_HZ / len(samples)


def test_silence_comes_first_and_the_query_follows_whole() -> None:
    query = tone(440)
    late = QueryAugmentation([LeadingSilence(min_s=0.25, max_s=0.25, p=1.0)])(query, 0, 0)
    assert torch.equal(late, torch.cat([torch.zeros(4000), query]))
    drawn = [len(QueryAugmentation([LeadingSilence(0.1, 0.9, p=1.0)])(query, 0, k)) / RATE_HZ - 0.5 for k in range(30)]
    assert 0.1 <= min(drawn) < 0.3 and 0.7 < max(drawn) <= 0.9


def test_a_narrow_band_keeps_what_a_telephone_keeps() -> None:
    narrow = QueryAugmentation([NarrowBand(p=1.0)])
    inside, outside = narrow(tone(1_000), 0, 0), narrow(tone(6_000), 0, 0)
    assert len(inside) == len(tone(1_000))
    middle = slice(1000, -1000)
    torch.testing.assert_close(inside[middle], tone(1_000)[middle], atol=1e-2, rtol=0)
    assert outside[middle].abs().max() < 1e-2
    samples = np.ones(9, dtype=np.float32)
    assert NarrowBand(16_000, 16_000, p=1.0)(samples, sample_rate=RATE_HZ) is samples


def test_how_narrow_is_drawn_from_a_range() -> None:
    clicks = torch.zeros(8_000)
    clicks[4_000] = 1.0  # all frequencies alike
    narrow = QueryAugmentation([NarrowBand(5_000, 12_000, p=1.0)])
    spectra = [torch.fft.rfft(narrow(clicks, 0, example)).abs() for example in range(30)]
    edges_hz = [float((one > 0.5).sum()) * RATE_HZ / 8_000 for one in spectra]
    assert 2_300 < min(edges_hz) < 3_200 and 5_000 < max(edges_hz) < 6_000


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_faster_is_shorter_and_higher(factor: float) -> None:
    changed = QueryAugmentation([SpeedChange(factor, factor, p=1.0)])(tone(1_000), 0, 0)
    assert len(changed) == pytest.approx(8_000 / factor, abs=1) and changed.dtype == torch.float32
    assert loudest_hz(changed) == pytest.approx(1_000 * factor, rel=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeadingSilence(-1.0), "min_s is -1"),
        (lambda: LeadingSilence(1.0, 0.5), "max_s is 0.5"),
        (lambda: LeadingSilence(p=1.5), "p is 1.5"),
        (lambda: NarrowBand(500), "min_rate_hz is 500"),
        (lambda: NarrowBand(8_000, 6_000), "max_rate_hz is 6000"),
        (lambda: SpeedChange(0.0), "min_factor is 0"),
        (lambda: SpeedChange(1.2, 0.9), "max_factor is 0.9, min_factor 1.2; give the slowest first"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
