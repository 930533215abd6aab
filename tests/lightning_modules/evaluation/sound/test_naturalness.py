"""Naturalness is read from TorchScript files of either kind of samples."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.evaluation.sound.naturalness import NaturalnessJudge

CPU = torch.device("cpu")


class OfIntegers(nn.Module):
    """Scales samples of 16 bits itself: the mean amplitude, from 1 to 5."""

    def forward(self, samples: Tensor) -> Tensor:
        assert samples.dtype == torch.int16
        return 1 + 4 * (samples.float() / 32767).abs().mean(dim=1)


class OfFloats(nn.Module):
    """Runs a convolution, which takes no integers."""

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.Conv1d(1, 1, 1, bias=False)
        nn.init.ones_(self.average.weight)

    def forward(self, samples: Tensor) -> Tensor:
        return 1 + 4 * self.average(samples[:, None])[:, 0].abs().mean(dim=1)


class OfFrames(nn.Module):
    """Gives a number per sample."""

    def forward(self, samples: Tensor) -> Tensor:
        return samples.float()


def save(network: nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(file))
    return file


@pytest.mark.parametrize("network", [OfIntegers(), OfFloats()], ids=["integers", "floats"])
def test_the_score_is_that_of_the_network_in_the_file(network: nn.Module, tmp_path: Path) -> None:
    judge = NaturalnessJudge(save(network, tmp_path / "utmos.pt"))
    judge.load(CPU)
    assert judge.takes_int16 == isinstance(network, OfIntegers)
    assert judge(torch.full((16_000,), 0.5)) == pytest.approx(3.0, abs=1e-3)
    assert judge(torch.full((16_000,), 7.0)) == pytest.approx(5.0, abs=1e-3), "clipped as it is heard"
    assert judge(torch.zeros(0)) == 1.0, "nobody likes a reply that is not there"
    assert judge(torch.full((4000,), 0.5)) == pytest.approx(2.0, abs=1e-3), "padded to half a second"


def test_mistakes_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the path of a TorchScript file"):
        NaturalnessJudge(tmp_path / "gone.pt").load(CPU)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UserError, match="cannot be read as TorchScript"):
        NaturalnessJudge(tmp_path / "text.pt").load(CPU)
    with pytest.raises(UserError, match="more or less than one number"):
        NaturalnessJudge(save(OfFrames(), tmp_path / "frames.pt")).load(CPU)
