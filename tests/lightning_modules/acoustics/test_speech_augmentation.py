"""Augmentation: repeatable, and each setting has the effect and the size that it states."""

import pytest
import torch

from lightning_modules.acoustics.speech_augmentation import SpeechAugmentation

OFF = {
    "gain_db": 0.0,
    "noise_db": (300.0, 300.0),
    "blur": 0.0,
    "ripple_db": 0.0,
    "num_time_masks": 0,
    "num_frequency_masks": 0,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def speech() -> torch.Tensor:
    return 0.1 * torch.randn(3, 5_001, generator=generator())


def test_pure_function_of_waveform_and_generator(speech):
    augmentation = SpeechAugmentation()
    first, again, other = (augmentation(speech, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == speech.shape
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_all_off_changes_nothing(speech):
    torch.testing.assert_close(SpeechAugmentation(**OFF)(speech, generator()), speech, atol=1e-5, rtol=1e-4)


def test_gain_scales_each_row_within_its_range(speech):
    ratio = SpeechAugmentation(**{**OFF, "gain_db": 6.0})(speech, generator()).norm(dim=1) / speech.norm(dim=1)
    assert ratio.unique().numel() == 3 and ratio.max() < 2.0 and ratio.min() > 0.5


@pytest.mark.parametrize("noise_db", [10.0, 30.0])
def test_noise_lies_where_asked(speech, noise_db):
    noisy = SpeechAugmentation(**{**OFF, "noise_db": (noise_db, noise_db)})(speech, generator())
    level_db = 20 * ((noisy - speech).norm(dim=1) / speech.norm(dim=1)).log10()
    torch.testing.assert_close(level_db, torch.full((3,), -noise_db), atol=0.5, rtol=0)


def test_masks_silence(speech):
    masks = {"num_time_masks": 1, "time_mask_s": 0.2}
    masked = SpeechAugmentation(**{**OFF, **masks})(speech, generator())
    silent = (masked.abs() < 1e-4 * speech.abs().amax()).sum(1)
    assert (silent > 0).any() and (silent <= 0.2 * 16_000 + 512).all()


def test_blur_and_ripple_change_the_spectrum(speech):
    for setting in ({"blur": 1.0}, {"ripple_db": 6.0}):
        changed = SpeechAugmentation(**{**OFF, **setting})(speech, generator())
        assert 0.01 < (changed - speech).norm() / speech.norm() < 1.5


def test_silence_stays_silent():
    assert not SpeechAugmentation()(torch.zeros(1, 2000), generator()).any()
