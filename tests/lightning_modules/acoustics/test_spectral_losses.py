"""The distance of magnitudes: zero for equal sounds, deaf to phases, and the formula of the paper."""

import math

import pytest
import torch
from torch import Tensor

from lightning_modules.acoustics.spectral_losses import FLOOR, MultiResolutionStftLoss
from lightning_modules.errors import UserError


def noise(seed: int, rows: int = 2, samples: int = 2_048) -> Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


def test_equal_sounds_are_at_distance_zero_and_a_sign_is_not_heard() -> None:
    loss, sound = MultiResolutionStftLoss((256, 512)), noise(0)
    assert float(loss(sound, sound)) == 0.0
    assert float(loss(-sound, sound)) < 1e-5
    assert float(loss(noise(1), sound)) > 0.3


def test_it_is_the_formula_of_the_paper() -> None:
    found, wanted = noise(0), noise(1)
    window = torch.hann_window(256)

    def magnitude(sound: Tensor) -> Tensor:
        spectrum = torch.stft(sound, 256, 64, window=window, center=False, return_complex=True)
        return spectrum.abs() / (window.sum() / 2)

    one, other = magnitude(found), magnitude(wanted)
    expected = ((one + FLOOR).log() - (other + FLOOR).log()).abs().mean() + (one - other).norm() / other.norm()
    torch.testing.assert_close(MultiResolutionStftLoss((256,))(found, wanted), expected, rtol=1e-4, atol=1e-5)


def test_a_change_of_level_is_its_logarithm() -> None:
    loss = MultiResolutionStftLoss((256,))
    sound = 1e3 * noise(0)  # far above the floor
    assert float(loss(2 * sound, sound)) == pytest.approx(math.log(2) + 1, rel=1e-3)


def test_silence_has_finite_gradients() -> None:
    sound = torch.zeros(1, 1_024, requires_grad=True)
    MultiResolutionStftLoss((256,))(sound, torch.zeros(1, 1_024)).backward()
    assert sound.grad is not None and sound.grad.isfinite().all()


@pytest.mark.parametrize(("windows", "message"), [((), "give at least one"), ((255,), "multiple of 4"), ((0,), "is 0")])
def test_windows_that_cannot_be_are_refused(windows: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MultiResolutionStftLoss(windows)
