"""Speech whose text does not say how it is spoken: tempo, pitch and pauses of each phrase are drawn at random."""

import html
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_within


@dataclass(frozen=True)
class Phrase:
    """Words that are spoken in one manner.

    Attributes:
        text: The words, with the space behind them.
        tempo_percent: Speed, as a share of the voice's.
        pitch_percent: Change of the voice's base pitch.
        pitch_range_percent: Liveliness of the melody, as a share of the voice's.
        pause_ms: Silence behind the words.
    """

    text: str
    tempo_percent: int = 100
    pitch_percent: int = 0
    pitch_range_percent: int = 100
    pause_ms: int = 0


@dataclass(frozen=True)
class ExpressiveSpeech:
    """Ranges of the manner of speaking, from which each phrase of a reply draws its own; both ends are included.

    Attributes:
        words_per_phrase: Least and largest number of words that share a manner.
        tempo_percent: Slowest and fastest speed, as a share of the voice's.
        pitch_percent: Largest change of the base pitch, down and up.
        pitch_range_percent: Flattest and liveliest melody, as a share of the voice's.
        pause_share: Share of the gaps between phrases that have a pause.
        pause_ms: Shortest and longest pause.

    Raises:
        UserError: If a range is none, or holds a value that cannot be spoken.
    """

    words_per_phrase: Sequence[int] = (1, 4)
    tempo_percent: Sequence[int] = (70, 140)
    pitch_percent: Sequence[int] = (-10, 10)
    pitch_range_percent: Sequence[int] = (50, 200)
    pause_share: float = 0.5
    pause_ms: Sequence[int] = (60, 300)

    def __post_init__(self) -> None:
        """Check the ranges."""
        lowest = {
            "words_per_phrase": 1,
            "tempo_percent": 1,
            "pitch_percent": -99,
            "pitch_range_percent": 0,
            "pause_ms": 0,
        }
        for name, low in lowest.items():
            found = getattr(self, name)
            if len(found) != 2 or not low <= found[0] <= found[1]:
                raise UserError(f"{name}={list(found)}: give the lowest and the highest, of at least {low}")
        require_within(0, 1, pause_share=self.pause_share)

    def draw(self, text: str, generator: random.Random) -> tuple[Phrase, ...]:
        """Draw how a text is spoken.

        Args:
            text: At least one word.
            generator: Equal states give equal phrases.

        Returns:
            Phrases whose texts make up the text; the last one has no pause.
        """
        words = re.findall(r"\s*\S+\s*", text)
        phrases = []
        while words:
            count = generator.randint(*self.words_per_phrase)
            own, words = words[:count], words[count:]
            tempo, pitch, pitch_range, pause_ms = (
                generator.randint(*bounds)
                for bounds in (self.tempo_percent, self.pitch_percent, self.pitch_range_percent, self.pause_ms)
            )
            is_followed = generator.random() < self.pause_share and bool(words)
            phrases.append(Phrase("".join(own), tempo, pitch, pitch_range, pause_ms if is_followed else 0))
        return tuple(phrases)


def mean_tempo(phrases: Sequence[Phrase]) -> float:
    """Give the speed of a whole text, pauses left out, as a share of the voice's: words over what they take."""
    counts = [len(phrase.text.split()) for phrase in phrases]
    taken = sum(count * 100 / phrase.tempo_percent for count, phrase in zip(counts, phrases, strict=True))
    return sum(counts) / taken


def groups_by_tempo(tempos: Sequence[float], num_groups: int) -> list[tuple[list[int], str]]:
    """Divide replies into groups of equally many, from slow to fast; of equal tempos the earlier one comes first.

    Returns:
        The places of each group's replies, and their range of tempos in words; no group is empty, if replies are few.
    """
    found = np.asarray(tempos)
    groups = np.array_split(np.argsort(found, kind="stable"), num_groups)
    return [(own.tolist(), f"{found[own].min():.2f} to {found[own].max():.2f}") for own in groups if len(own)]


def to_ssml(phrases: Sequence[Phrase]) -> str:
    """Write phrases in the Speech Synthesis Markup Language; what is no tag is the text itself.

    Reference: https://www.w3.org/TR/speech-synthesis11/
    """
    spoken = [
        f'<prosody rate="{one.tempo_percent}%" pitch="{one.pitch_percent:+d}%" range="{one.pitch_range_percent}%">'
        f"{html.escape(one.text, quote=False)}</prosody>"
        + (f'<break time="{one.pause_ms}ms"/>' if one.pause_ms else "")
        for one in phrases
    ]
    return f"<speak>{''.join(spoken)}</speak>"


def place_in_text(ssml: str, place: int) -> int:
    """Give the place in the text of a character of what :func:`to_ssml` wrote."""
    return len(html.unescape(re.sub(r"<[^>]*>", "", ssml[:place])))
