"""Changes of spoken queries that `audiomentations` has no transform for, written as its transforms are."""

import random
from typing import Any

import numpy as np
import soxr
from audiomentations.core.transforms_interface import BaseWaveformTransform

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive, require_within


class LeadingSilence(BaseWaveformTransform):
    """Puts silence before a query, as someone who waits before speaking.

    Args:
        min_s: The least seconds.
        max_s: The most seconds.
        p: Probability that it is applied.

    Raises:
        UserError: If a number is out of range.
    """

    supports_multichannel = True

    def __init__(self, min_s: float = 0.0, max_s: float = 1.0, p: float = 0.5) -> None:
        require_at_least(0.0, min_s=min_s)
        require_at_least(min_s, max_s=max_s)
        require_within(0.0, 1.0, p=p)
        super().__init__(p)
        self.min_s, self.max_s = min_s, max_s

    def randomize_parameters(self, samples: np.ndarray, sample_rate: int) -> None:
        """Draw how long it is."""
        super().randomize_parameters(samples, sample_rate)
        self.parameters["seconds"] = random.uniform(self.min_s, self.max_s)

    def apply(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """Lengthen ``(..., S) float32``."""
        silence = np.zeros((*samples.shape[:-1], round(self.parameters["seconds"] * sample_rate)), samples.dtype)
        return np.concatenate([silence, samples], axis=-1)


class NarrowBand(BaseWaveformTransform):
    """Resamples a query to a lower rate and back, as a telephone does, which removes what lies above half that rate.

    Args:
        min_rate_hz: The lowest of the lower rates.
        max_rate_hz: The highest of them; a rate that is not below the query's changes nothing.
        p: Probability that it is applied.

    Raises:
        UserError: If a number is out of range.
    """

    supports_multichannel = False

    def __init__(self, min_rate_hz: int = 8_000, max_rate_hz: int = 8_000, p: float = 0.5) -> None:
        require_at_least(1_000, min_rate_hz=min_rate_hz)
        require_at_least(min_rate_hz, max_rate_hz=max_rate_hz)
        require_within(0.0, 1.0, p=p)
        super().__init__(p)
        self.min_rate_hz, self.max_rate_hz = min_rate_hz, max_rate_hz

    def randomize_parameters(self, samples: np.ndarray, sample_rate: int) -> None:
        """Draw how narrow."""
        super().randomize_parameters(samples, sample_rate)
        self.parameters["rate_hz"] = random.randint(self.min_rate_hz, self.max_rate_hz)

    def apply(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """Filter ``(S,) float32``; its length stays."""
        rate_hz = self.parameters["rate_hz"]
        if sample_rate <= rate_hz:
            return samples
        narrow = soxr.resample(samples, sample_rate, rate_hz)
        wide: np.ndarray = soxr.resample(narrow, rate_hz, sample_rate)
        return np.pad(wide[: len(samples)], (0, max(0, len(samples) - len(wide))))


class SpeedChange(BaseWaveformTransform):
    """Plays a query faster or slower, and so with a higher or lower voice, by resampling.

    Args:
        min_factor: The slowest; 0.9 is a tenth slower.
        max_factor: The fastest.
        p: Probability that it is applied.

    Raises:
        UserError: If a number is out of range.

    Reference: Ko et al., Audio Augmentation for Speech Recognition, Interspeech 2015.
    """

    supports_multichannel = False

    def __init__(self, min_factor: float = 0.9, max_factor: float = 1.1, p: float = 0.5) -> None:
        require_positive(min_factor=min_factor)
        require_within(0.0, 1.0, p=p)
        if max_factor < min_factor:
            raise UserError(f"max_factor is {max_factor}, min_factor {min_factor}; give the slowest first")
        super().__init__(p)
        self.min_factor, self.max_factor = min_factor, max_factor

    def randomize_parameters(self, samples: np.ndarray, sample_rate: int) -> None:
        """Draw how fast."""
        super().randomize_parameters(samples, sample_rate)
        self.parameters["factor"] = random.uniform(self.min_factor, self.max_factor)

    def apply(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """Shorten or lengthen ``(S,) float32``."""
        changed: Any = soxr.resample(samples, sample_rate * self.parameters["factor"], sample_rate)
        return changed
