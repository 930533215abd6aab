"""Speech synthesis by the eSpeak NG library that comes inside the `espeakng_loader` wheel."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from datamodules.synthetic.expressive_speech import Phrase, place_in_text, to_ssml
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_within

SAMPLE_RATE = 16_000

# What eSpeak accepts: lowest and highest speed in words per minute, lowest and highest pitch.
RATES_WPM, PITCHES = (80, 450), (0, 99)

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_SSML = 0x10
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_POSITION_CHARACTER = 1
_OK = 0

# Kinds of event: the end of a list, and the beginning of a word.
_LIST_ENDS, _WORD_BEGINS = 0, 1


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """What happens at a sample, as `espeak_EVENT` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """One way of speaking.

    Attributes:
        language: An eSpeak language, such as "en-us" or "en-gb".
        variant: An eSpeak voice variant, such as "m3" or "f2"; empty for the language's own voice.
        rate_wpm: Speed in words per minute, 80 to 450.
        pitch: Base pitch, 0 to 99.
        pitch_range: How lively the melody is, 0 (monotone) to 99.

    Raises:
        UserError: If a value lies outside of what eSpeak accepts.
    """

    language: str = "en-us"
    variant: str = ""
    rate_wpm: int = 175
    pitch: int = 50
    pitch_range: int = 50

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_within(*RATES_WPM, rate_wpm=self.rate_wpm)
        require_within(*PITCHES, pitch=self.pitch, pitch_range=self.pitch_range)

    @property
    def name(self) -> str:
        """The eSpeak name of language and variant, such as "en-us+f2"."""
        return f"{self.language}+{self.variant}" if self.variant else self.language


def trim_silence(waveform: np.ndarray, margin_s: float, threshold: float = 0.01) -> np.ndarray:
    """Cut the silence around speech down to a fixed margin; where there is less than that, zeros are added.

    Args:
        waveform: Speech at 16 kHz, ``(S,) float32``.
        margin_s: Seconds that are kept before the first and after the last sample that is louder than the threshold.
        threshold: Loudness, as a share of the peak, below which a sample is silence.

    Returns:
        ``(S',) float32``; empty if the input is silent.
    """
    loud = _loud_samples(waveform, threshold)
    if loud.size == 0:
        return waveform[:0]
    margin = round(margin_s * SAMPLE_RATE)
    padded = np.pad(waveform, margin)
    return padded[loud[0] : loud[-1] + 1 + 2 * margin]


def _loud_samples(waveform: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Give the indices of samples that are louder than a share of the peak; none if all are zero."""
    peak = np.abs(waveform).max(initial=0.0)
    return np.flatnonzero(np.abs(waveform) > threshold * peak) if peak > 0.0 else np.zeros(0, np.int64)


class EspeakSynthesizer:
    """Speaks text.

    The library keeps its state in globals, so use one synthesizer per process, and more processes for speed.

    Args:
        margin_s: Silence left at both ends, in seconds.

    Raises:
        UserError: If the library cannot be loaded or cannot read its voices.
    """

    def __init__(self, margin_s: float = 0.04) -> None:
        self.margin_s = margin_s
        _shared_library()
        self._pieces: list[np.ndarray] = []
        self._words: list[tuple[int, int]] = []  # character and sample, of what is being spoken
        # The library keeps the address of the callback: hold the object for as long as this one lives.
        self._callback = _Callback(self._collect)

    def reset(self) -> None:
        """Load the library again, so that what follows sounds the same whatever was said before.

        eSpeak carries some state (the phase of its voice) from one utterance to the next and has no call to reset it.
        All synthesizers of the process share the library, and use the new one from now on.
        """
        global _loaded
        library, _ = _shared_library()
        library.espeak_Terminate()
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))
        _loaded = None

    def synthesize(self, text: str, voice: Voice, phrases: Sequence[Phrase] = ()) -> np.ndarray:
        """Speak one text.

        Args:
            text: What to say.
            voice: How to say it.
            phrases: The text in phrases, each in a manner of its own; all in the voice's if there are none.

        Returns:
            ``(S,) float32`` at 16 kHz in [-1, 1].

        Raises:
            UserError: If eSpeak does not know the voice, or the text gives no sound.
        """
        return trim_silence(self._speak(text, voice, phrases), self.margin_s)

    def word_starts(self, text: str, voice: Voice, phrases: Sequence[Phrase] = ()) -> list[tuple[int, float]]:
        """Tell when each word of a text begins.

        Args:
            text: What to say.
            voice: How to say it.
            phrases: As :meth:`synthesize`.

        Returns:
            For each word the place of its first character, from 0, and its second in what :meth:`synthesize` gives.

        Raises:
            UserError: As :meth:`synthesize`.
        """
        cut_s = _loud_samples(self._speak(text, voice, phrases))[0] / SAMPLE_RATE - self.margin_s
        _, native_rate_hz = _shared_library()
        ssml = to_ssml(phrases)
        places = [place_in_text(ssml, place) if phrases else place for place, _ in self._words]
        seconds = [sample / native_rate_hz - cut_s for _, sample in self._words]
        return list(zip(places, seconds, strict=True))

    def _speak(self, text: str, voice: Voice, phrases: Sequence[Phrase]) -> np.ndarray:
        """Speak a text, with the silence around it; raises as :meth:`synthesize`."""
        library, native_rate_hz = _shared_library()
        _select(library, voice)
        self._pieces.clear()
        self._words.clear()
        library.espeak_SetSynthCallback(self._callback)
        assert not phrases or "".join(phrase.text for phrase in phrases) == text, "phrases of another text"
        data = (to_ssml(phrases) if phrases else text).encode("utf-8")
        flags = _CHARS_UTF8 | (_SSML if phrases else 0)
        status = library.espeak_Synth(data, len(data) + 1, 0, _POSITION_CHARACTER, 0, flags, None, None)
        if status == _OK:
            status = library.espeak_Synchronize()
        if status != _OK:
            raise UserError(f"eSpeak: could not speak {text!r} as {voice.name} (status {status})")
        pieces = [np.zeros(0, np.int16), *self._pieces]
        native = np.concatenate(pieces).astype(np.float32) / 32768.0
        waveform = np.clip(soxr.resample(native, native_rate_hz, SAMPLE_RATE), -1.0, 1.0)
        if not waveform.any():
            raise UserError(f"eSpeak: {text!r} as {voice.name} is silent; give it words to say")
        return waveform

    def phonemes(self, text: str, voice: Voice) -> tuple[str, ...]:
        """Tell how a text would be spoken.

        Args:
            text: Words of one clause.
            voice: Who would say it.

        Returns:
            eSpeak's names of the phonemes, without stress.

        Raises:
            UserError: If eSpeak does not know the voice.
        """
        library, _ = _shared_library()
        _select(library, voice)
        rest = ctypes.c_char_p(text.encode("utf-8"))
        spoken = library.espeak_TextToPhonemes(ctypes.byref(rest), _CHARS_UTF8, ord("_") << 8).decode("utf-8")
        return tuple(name for name in re.sub(r"[',|%=]", "", spoken).replace(" ", "_").split("_") if name)

    def _collect(self, samples, count: int, events) -> int:
        found = ctypes.cast(events, ctypes.POINTER(_Event))
        number = 0
        while events and found[number].type != _LIST_ENDS:
            if found[number].type == _WORD_BEGINS:
                self._words.append((found[number].text_position - 1, found[number].sample))
            number += 1
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0


# The library, and the sample rate of what it speaks, once a synthesizer has loaded it in this process.
_loaded: tuple[ctypes.CDLL, int] | None = None


def _shared_library() -> tuple[ctypes.CDLL, int]:
    global _loaded
    if _loaded is None:
        _loaded = _load_library()
    return _loaded


def _select(library: ctypes.CDLL, voice: Voice) -> None:
    if library.espeak_SetVoiceByName(voice.name.encode("ascii")) != _OK:
        raise UserError(f"eSpeak: no voice {voice.name!r}; use a language such as en-us with a variant m1..m7, f1..f5")
    for parameter, value in ((_RATE, voice.rate_wpm), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)


def _load_library() -> tuple[ctypes.CDLL, int]:
    import espeakng_loader

    library_path, data_path = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    try:
        library = ctypes.CDLL(str(library_path))
    except OSError as error:
        raise UserError(f"eSpeak: cannot load {library_path} ({error}); reinstall espeakng-loader") from error
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
    library.espeak_SetSynthCallback.argtypes = [_Callback]
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    path = str(Path(data_path)).encode()
    rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, path, _INITIALIZE_DONT_EXIT)
    if rate <= 0:
        raise UserError(
            f"eSpeak: cannot read its voices in {data_path} (a path over 150 characters is too long for it)"
        )
    # Breath is noise, seeded by the clock unless told otherwise.
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_ng_SetRandSeed(1)
    return library, rate
