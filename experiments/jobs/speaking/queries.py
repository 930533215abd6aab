"""Spoken queries from outside: a file of any rate, or a text that the embedded synthesizer speaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from datamodules.batch import SAMPLE_RATE_HZ
from datamodules.formats.released_layout import read_audio
from datamodules.synthetic.espeak import EspeakSynthesizer, Voice
from lightning_modules.errors import UserError

SHORTEST_S, LONGEST_S = 0.2, 30.0
SILENCE = 1e-4  # a peak below it, -80 dB, is no speech

# The queries of the synthetic corpora: their mean level, the spread around it, and the silence left around them.
LEVEL_DB, SPREAD_DB, MARGIN_S = -20.4, 3.0, 0.04
FRAME_S = 0.02
RANGE_DB = 40.0  # a frame that lies further below the loudest one is silence


def read_query(file: Path) -> tuple[Tensor, str]:
    """Read a spoken query from a file of any sample rate and number of channels.

    Args:
        file: A file that libsndfile reads (wav, flac, ogg, mp3).

    Returns:
        ``(S,) float32`` at 16 kHz, and what the file holds in words.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is no audio, too short or too long, silent, or holds values that are not finite.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"query: there is no file {path}; give a wav, flac, ogg or mp3 file")
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"query: {path} is not readable as audio ({error}); give a wav, flac, ogg or mp3 file"
        ) from error
    _refuse_length(str(path), info.duration)  # before it is read, since it may be of any size
    query = checked_query(read_audio(path), str(path))
    return query, f"{info.samplerate:,} Hz, {info.channels} channel{'s' if info.channels > 1 else ''}"


def speak_query(text: str, voice: Voice) -> Tensor:
    """Speak a typed query by eSpeak NG, the same whatever this process spoke before.

    Args:
        text: What is asked.
        voice: Who asks.

    Returns:
        ``(S,) float32`` at 16 kHz.

    Raises:
        UserError: If the text has no words, or takes too long to say.
    """
    if not text.strip():
        raise UserError("text is empty; write what is to be asked")
    synthesizer = EspeakSynthesizer()
    synthesizer.reset()
    return checked_query(synthesizer.synthesize(text, voice), "the spoken text")


def checked_query(samples: np.ndarray, what: str) -> Tensor:
    """Refuse samples that no thinker can answer.

    Args:
        samples: ``(S,) float32`` at 16 kHz.
        what: What they are, for errors.

    Returns:
        The samples, ``(S,) float32``.

    Raises:
        UserError: If they are too short or too long, silent, or not finite.
    """
    _refuse_length(what, len(samples) / SAMPLE_RATE_HZ)
    if not np.isfinite(samples).all():
        raise UserError(f"query: {what} holds values that are not finite; record it again")
    if np.abs(samples).max() < SILENCE:
        raise UserError(f"query: {what} is silent; record it louder")
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def prepared_query(samples: np.ndarray) -> np.ndarray:
    """Bring a query to what thinkers are trained on: without silence around it, and neither quiet nor loud.

    A thinker that only ever heard one level and queries that begin at once hears nothing else well.

    Args:
        samples: ``(S,) float32`` at 16 kHz.

    Returns:
        ``(S',) float32``; the samples as they are if they begin and end with speech of about the level of the corpora.
    """
    size = round(FRAME_S * SAMPLE_RATE_HZ)
    frames = np.pad(samples, (0, -len(samples) % size)).reshape(-1, size).astype(np.float64)
    power = np.square(frames).mean(axis=1)
    if not power.any():
        return samples
    loud = np.flatnonzero(power > power.max() * 10 ** (-RANGE_DB / 10))
    margin = round(MARGIN_S * SAMPLE_RATE_HZ)
    speech = samples[max(0, loud[0] * size - margin) : (loud[-1] + 1) * size + margin]
    gain_db = LEVEL_DB - 10 * np.log10(np.square(speech, dtype=np.float64).mean())
    if abs(gain_db) <= SPREAD_DB:
        return speech
    gain = min(10 ** (gain_db / 20), 1.0 / float(np.abs(speech).max()))  # no sample is clipped
    return (gain * speech).astype(np.float32)


def _refuse_length(what: str, seconds: float) -> None:
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise UserError(f"query: {what} takes {seconds:.2f} s; give one of {SHORTEST_S:g} to {LONGEST_S:g} s")
