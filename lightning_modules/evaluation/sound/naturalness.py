"""Naturalness of speech, as a published network predicts that listeners rate it."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from lightning_modules.errors import UserError

SAMPLE_RATE = 16_000
LOWEST = 1.0
SHORTEST_S = 0.5
FULL_SCALE = 32767


class NaturalnessJudge:
    """Predicts the mean opinion score of speech, from 1 to 5, by a network in one TorchScript file.

    UTMOS is published in such files. They take a batch of waveforms at 16 kHz, ``(1, S)``, and give one score. Some
    take int16 and others float32 samples; int16 is tried first.

    Args:
        file: The TorchScript file.

    Reference: arXiv 2204.02152 (UTMOS).
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self.device = torch.device("cpu")
        self.takes_int16 = True
        self._network: torch.jit.ScriptModule | None = None

    def load(self, device: torch.device) -> None:
        """Read the file, and try it on a second of silence.

        Args:
            device: Where to run it.

        Raises:
            FileNotFoundError: If there is no such file.
            UserError: If it is no TorchScript, or gives anything but one number per waveform.
        """
        if not self.file.is_file():
            raise FileNotFoundError(f"there is no file {self.file}; give the path of a TorchScript file of UTMOS")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the files are published in this format alone
                self._network = torch.jit.load(str(self.file), map_location=device).eval()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{self.file} cannot be read as TorchScript ({reason}); give a file of UTMOS") from error
        self.device = device
        for takes_int16 in (True, False):
            self.takes_int16 = takes_int16
            try:
                self(torch.zeros(SAMPLE_RATE))
                return
            except RuntimeError as error:
                problem = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{self.file} does not take waveforms (1, S) at 16 kHz and give one score ({problem}); give a file of UTMOS"
        )

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> float:
        """Predict the score of one utterance.

        Args:
            waveform: ``(S,) float32`` at 16 kHz. Shorter than half a second it is padded with silence.

        Returns:
            The score; 1, the lowest, if there is nothing to hear.
        """
        assert self._network is not None, "load it first"
        if not waveform.numel():
            return LOWEST
        missing = max(0, round(SHORTEST_S * SAMPLE_RATE) - len(waveform))
        samples = torch.nn.functional.pad(waveform.clamp(-1, 1), (0, missing))[None].to(self.device)
        if self.takes_int16:
            samples = (samples * FULL_SCALE).round().to(torch.int16)
        score = self._network(samples)
        if not isinstance(score, Tensor) or score.numel() != 1:
            raise RuntimeError("it gives more or less than one number")
        return float(score)
