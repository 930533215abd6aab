"""Audio and pictures as small texts that stand in a page."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from matplotlib import colormaps
from PIL import Image

from lightning_modules.acoustics.log_mel import LOG_STD, SAMPLE_RATE, LogMel
from lightning_modules.evaluation.sound.sound_quality import DECIBELS

MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
RANGE_DB = 70.0


class Media(NamedTuple):
    """What is heard and seen of a wav file.

    Attributes:
        audio: MP3, which all browsers play, as a data URI.
        mel: Its mel spectrogram, 100 columns per second and 80 rows, as a data URI of a WebP picture.
        seconds: Its length.
    """

    audio: str
    mel: str
    seconds: float


def load_media(file: Path) -> Media:
    """Read a wav file and make both.

    Args:
        file: Of one channel.

    Returns:
        Data URIs.
    """
    waveform, rate_hz = soundfile.read(file, dtype="float32")
    return Media(encode_audio(waveform, rate_hz), draw_mel_picture(waveform, rate_hz), len(waveform) / rate_hz)


def encode_audio(waveform: np.ndarray, rate_hz: int) -> str:
    """Encode samples as MP3.

    Args:
        waveform: ``(S,) float32``.
        rate_hz: Its rate; one that MP3 does not know is raised to the next that it knows.

    Returns:
        A data URI.
    """
    if rate_hz not in MP3_RATES_HZ:
        known = next((rate for rate in MP3_RATES_HZ if rate > rate_hz), MP3_RATES_HZ[-1])
        waveform, rate_hz = soxr.resample(waveform, rate_hz, known), known
    encoded = io.BytesIO()
    soundfile.write(encoded, waveform, rate_hz, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    return _data_uri("audio/mpeg", encoded.getvalue())


def draw_mel_picture(waveform: np.ndarray, rate_hz: int) -> str:
    """Draw a mel spectrogram without axes, a column per frame of 10 ms.

    Args:
        waveform: ``(S,) float32``, at least one sample.
        rate_hz: Its rate.

    Returns:
        A data URI.
    """
    at_16_khz = waveform if rate_hz == SAMPLE_RATE else soxr.resample(waveform, rate_hz, SAMPLE_RATE)
    with torch.no_grad():
        magnitude = LogMel()(torch.from_numpy(at_16_khz)[None])[0].numpy()
    shade = np.clip(1 + (magnitude - magnitude.max()) * LOG_STD * DECIBELS / RANGE_DB, 0, 1)
    pixels = colormaps["magma"](shade[::-1], bytes=True)[..., :3]
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="WEBP", quality=60)
    return _data_uri("image/webp", encoded.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
