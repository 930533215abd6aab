"""How speech sounds, whatever it says: changes of timbre and loudness where chunks meet, and silence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_modules.acoustics.log_mel import HOP_SAMPLES, LOG_MEAN, LOG_STD, SAMPLE_RATE, LogMel
from lightning_modules.evaluation.bootstrap import draw_counts, interval_of

WINDOW_FRAMES = 10
SILENCE_DB = 40.0
DIGITAL_SILENCE_DB = -75.0
DECIBELS = 20 / math.log(10)


@dataclass(frozen=True)
class SoundQuality:
    """How one utterance sounds.

    Attributes:
        border_timbre_db: Sum over the borders of chunks of the distance between the log-mel shapes of the 0.1 s before
            and behind, in dB, root mean square over the bands.
        border_loudness_db: The same of the distance in level.
        num_borders: Borders with speech on both sides.
        inner_timbre_db: Sum of these distances at places between borders.
        inner_loudness_db: The same of the distance in level.
        num_inner: Such places with speech on both sides.
        silent_share: Share of frames of 10 ms that are 40 dB or more below the loud ones; 1 if nothing is heard.
    """

    border_timbre_db: float
    border_loudness_db: float
    num_borders: int
    inner_timbre_db: float
    inner_loudness_db: float
    num_inner: int
    silent_share: float


@dataclass(frozen=True)
class Drift:
    """How much more speech changes where chunks meet than elsewhere; 1 means as much, so that no border is heard.

    Attributes:
        ratio: Mean distance at borders over the mean distance elsewhere.
        interval: 95 % interval of that, by bootstrap over the utterances.
    """

    ratio: float
    interval: tuple[float, float]


class SoundMeter:
    """Measures how utterances sound.

    The voice of a speaker shows in the shape of the mel spectrum, prosody in its level. Both change all the time in
    speech, so the change at borders is held against that at all other places of the same utterances.
    """

    def __init__(self) -> None:
        self.log_mel = LogMel()

    @torch.no_grad()
    def __call__(self, waveform: Tensor, chunk_s: float) -> SoundQuality:
        """Measure one utterance.

        Args:
            waveform: ``(S,) float32`` at 16 kHz on the CPU.
            chunk_s: Seconds from one border of chunks to the next.

        Returns:
            Sums of distances, to be divided by :func:`drift` over many utterances.
        """
        if not waveform.numel():
            return SoundQuality(0.0, 0.0, 0, 0.0, 0.0, 0, 1.0)
        mel_db = ((self.log_mel(waveform[None])[0] * LOG_STD + LOG_MEAN) * DECIBELS).numpy()
        level = mel_db.max(axis=0)
        loud = float(np.quantile(level, 0.95))
        is_silent = level < max(loud - SILENCE_DB, DIGITAL_SILENCE_DB)
        timbre, loudness, is_spoken = _distances(mel_db, ~is_silent)
        places = np.arange(WINDOW_FRAMES, WINDOW_FRAMES + len(timbre))
        chunk_frames = chunk_s * SAMPLE_RATE / HOP_SAMPLES
        nearest = np.maximum(1, np.round(places / chunk_frames)) * chunk_frames
        is_border = is_spoken & (np.abs(places - nearest) < 0.5 + 1e-9)
        is_inner = is_spoken & (np.abs(places - nearest) >= WINDOW_FRAMES)
        return SoundQuality(
            float(timbre[is_border].sum()),
            float(loudness[is_border].sum()),
            int(is_border.sum()),
            float(timbre[is_inner].sum()),
            float(loudness[is_inner].sum()),
            int(is_inner.sum()),
            float(is_silent.mean()),
        )


def _distances(mel_db: np.ndarray, is_speech: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare the windows before and behind each place: distance in shape and in level, and whether both hold speech.

    Args:
        mel_db: ``(80, F)``.
        is_speech: ``(F,) bool``.

    Returns:
        Three arrays ``(F - 2 * WINDOW_FRAMES + 1,)``, the first of which belongs to place ``WINDOW_FRAMES``.
    """
    num_places = max(0, mel_db.shape[1] - 2 * WINDOW_FRAMES + 1)
    if not num_places:
        return np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool)
    sums = np.cumsum(np.pad(mel_db.astype(np.float64), ((0, 0), (1, 0))), axis=1)
    means = (sums[:, WINDOW_FRAMES:] - sums[:, :-WINDOW_FRAMES]) / WINDOW_FRAMES
    speech = np.cumsum(np.pad(is_speech.astype(np.int64), (1, 0)))
    is_full = speech[WINDOW_FRAMES:] - speech[:-WINDOW_FRAMES] > WINDOW_FRAMES // 2
    change = means[:, WINDOW_FRAMES:] - means[:, :-WINDOW_FRAMES]
    level = change.mean(axis=0)
    timbre = np.sqrt(((change - level) ** 2).mean(axis=0))
    return timbre, np.abs(level), is_full[WINDOW_FRAMES:] & is_full[:-WINDOW_FRAMES]


def timbre_drift(utterances: Sequence[SoundQuality]) -> Drift | None:
    """Compare how much timbre changes at borders and elsewhere; None if there is no border or nothing else."""
    return _drift(
        [(one.border_timbre_db, one.num_borders, one.inner_timbre_db, one.num_inner) for one in utterances],
    )


def loudness_drift(utterances: Sequence[SoundQuality]) -> Drift | None:
    """Compare how much the level changes at borders and elsewhere; None if there is no border or nothing else."""
    return _drift(
        [(one.border_loudness_db, one.num_borders, one.inner_loudness_db, one.num_inner) for one in utterances],
    )


def _drift(sums: Sequence[tuple[float, int, float, int]]) -> Drift | None:
    counts = np.array(sums, dtype=np.float64).reshape(-1, 4)
    total = counts.sum(axis=0)
    if not (total[1] and total[2] and total[3]):
        return None
    resampled = draw_counts(len(counts)) @ counts
    # A draw of utterances without a border says nothing; there are others, for the whole has one.
    resampled = resampled[(resampled[:, 1] > 0) & (resampled[:, 3] > 0)]
    low, high = interval_of(_ratio(resampled))
    return Drift(float(_ratio(total)), (float(low), float(high)))


def _ratio(sums: np.ndarray) -> np.ndarray:
    return (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])
