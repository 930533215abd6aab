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


def _refuse_length(what: str, seconds: float) -> None:
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise UserError(f"query: {what} takes {seconds:.2f} s; give one of {SHORTEST_S:g} to {LONGEST_S:g} s")
