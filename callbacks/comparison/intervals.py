"""Means over the dialogues of a decoding with their 95 % bootstrap intervals: times, and how the speech sounds."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from lightning_modules.evaluation.bootstrap import NUM_RESAMPLES, QUANTILES, draw_counts, interval_of
from lightning_modules.evaluation.sound.sound_quality import SoundQuality, loudness_drift, timbre_drift
from lightning_modules.evaluation.word_alignment import repeated_share

Interval = tuple[float, float]


def median_interval(values: Sequence[float]) -> Interval:
    """Give the 95 % interval of a median, by bootstrap over the values; there is at least one."""
    drawn = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    # The value in the middle, the lower of two: means of infinite times, those of empty replies, would be no numbers.
    medians = np.sort(np.asarray(values)[drawn], axis=1)[:, (len(values) - 1) // 2]
    low, high = np.quantile(medians, QUANTILES, method="closest_observation")
    return float(low), float(high)


def summarize_sound(
    sounds: Sequence[SoundQuality | None], said_and_heard: Sequence[tuple[str, str]], scores: Sequence[float | None]
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Sum up how the speech of one decoding sounds.

    Args:
        sounds: One per dialogue; None where it was not measured.
        said_and_heard: What was to be said, and what was heard.
        scores: Predicted naturalness; None where no judge was asked.

    Returns:
        Values by name, and the intervals of those that have one.
    """
    values = {"repeated_share": fmean(repeated_share(said, heard) for said, heard in said_and_heard)}
    intervals: dict[str, Interval] = {}
    measured = [sound for sound in sounds if sound is not None]
    if measured:
        values["silent_share"] = fmean(sound.silent_share for sound in measured)
        for name, drift in (("timbre_drift", timbre_drift(measured)), ("loudness_drift", loudness_drift(measured))):
            if drift is not None:
                values[name], intervals[name] = drift.ratio, drift.interval
    judged = [score for score in scores if score is not None]
    if judged:
        values["naturalness"] = fmean(judged)
        low, high = interval_of(draw_counts(len(judged)) @ np.asarray(judged) / len(judged))
        intervals["naturalness"] = float(low), float(high)
    return values, intervals
