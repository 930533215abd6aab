"""The templates of the assistant dialogues: what may be asked, and the one reply to it."""

import itertools
import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.synthetic import lexicon


@dataclass(frozen=True)
class Dialogue:
    """One query and its reply.

    Attributes:
        intent: The template that it comes from.
        query: What the user says.
        reply: What the assistant answers.
    """

    intent: str
    query: str
    reply: str


@dataclass(frozen=True, eq=False)
class Intent:
    """A family of dialogues.

    Attributes:
        name: Its name.
        share: Its part of the corpus, relative to the other intents.
        queries: Phrasings with `{slot}` places; one is drawn for each dialogue.
        reply: The one phrasing of the reply.
        slots: Each slot's values; a value is a dict from place to word, so that one slot may fill several places.
    """

    name: str
    share: float
    queries: tuple[str, ...]
    reply: str
    slots: tuple[tuple[dict[str, str], ...], ...]

    @property
    def capacity(self) -> int:
        """How many distinct replies it holds."""
        return math.prod(len(slot) for slot in self.slots)

    def render(self, choice: tuple[int, ...], phrasing: str) -> Dialogue:
        """Fill one choice of slot values into a phrasing."""
        query = phrasing.format(**self._words(choice))
        return Dialogue(self.name, query[0].upper() + query[1:], self.reply_to(choice))

    def reply_to(self, choice: tuple[int, ...]) -> str:
        """Give the reply to one choice of slot values."""
        reply = self.reply.format(**self._words(choice))
        return reply[0].upper() + reply[1:]

    def _words(self, choice: tuple[int, ...]) -> dict[str, str]:
        return {
            place: word for slot, index in zip(self.slots, choice, strict=True) for place, word in slot[index].items()
        }


def _slot(place: str, words: Sequence[str]) -> tuple[dict[str, str], ...]:
    return tuple({place: word} for word in words)


def _pairs(first: str, second: str, pairs: tuple[tuple[str, str], ...]) -> tuple[dict[str, str], ...]:
    return tuple({first: a, second: b} for a, b in pairs)


def _successors(cycle: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(cycle, cycle[1:] + cycle[:1], strict=True))


def default_intents(names: Sequence[str] = lexicon.NAMES) -> tuple[Intent, ...]:
    """Return the embedded templates.

    Args:
        names: Who may be asked about.
    """
    people = _slot("name", names)
    rooms = _slot("room", lexicon.ROOMS)
    days = _slot("day", lexicon.DAYS)
    events = _slot("event", lexicon.EVENTS)
    opposites = lexicon.OPPOSITES + tuple((b, a) for a, b in lexicon.OPPOSITES)
    foods = tuple({"food": a, "other": b} for a, b in itertools.permutations(lexicon.FOODS, 2))
    codes = tuple({"code": ", ".join(letters)} for letters in itertools.permutations(lexicon.CODE_LETTERS, 2))
    spelled = tuple({"word": word, "letters": ", ".join(word.upper())} for word in lexicon.SPELLED)
    moments = tuple({"time": f"{hour} {minute}"} for hour in lexicon.NUMBERS for minute in lexicon.MINUTES)
    songs = tuple({"song": f"{a} {b}"} for a in lexicon.SONG_FIRST for b in lexicon.SONG_SECOND)
    switches = tuple({"device": device, "state": state} for device in lexicon.DEVICES for state in ("on", "off"))
    return (
        Intent(
            "reminder",
            640,
            (
                "Remind {name} to {task} on {day}.",
                "Please remind {name} to {task} on {day}.",
                "On {day}, {name} should {task}.",
            ),
            "{name} will {task} on {day}.",
            (people, _slot("task", lexicon.TASKS), days),
        ),
        Intent(
            "alarm",
            400,
            ("Wake {name} at {time}.", "Set an alarm for {name} at {time}.", "{name} has to get up at {time}."),
            "The alarm of {name} is at {time}.",
            (people, moments),
        ),
        Intent(
            "timer",
            480,
            (
                "{name} here. Set a timer of {number} minutes for the {food}.",
                "This is {name}. The {food} should cook for {number} minutes.",
                "I am {name}. Time the {food}, {number} minutes.",
            ),
            "{food} for {name} in {number} minutes.",
            (people, _slot("food", lexicon.FOODS), _slot("number", lexicon.NUMBERS)),
        ),
        Intent(
            "song",
            650,
            (
                "Play {song} for {name} in the {room}.",
                "{name} wants to hear {song} in the {room}.",
                "In the {room}, put on {song} for {name}.",
            ),
            "{song} for {name} in the {room}.",
            (songs, people, rooms),
        ),
        Intent(
            "switch",
            540,
            (
                "{name} here. Turn {state} the {device} in the {room}.",
                "This is {name}. Switch the {room} {device} {state}.",
                "I am {name}. Please turn the {device} in the {room} {state}.",
            ),
            "The {room} {device} is {state} for {name}.",
            (people, rooms, switches),
        ),
        Intent(
            "where",
            540,
            (
                "{name} left the {thing} in the {room}.",
                "Remember that {name} put the {thing} in the {room}.",
                "In the {room} is the {thing} of {name}.",
            ),
            "The {thing} of {name} is in the {room}.",
            (people, rooms, _slot("thing", lexicon.THINGS)),
        ),
        Intent(
            "trip",
            680,
            (
                "Book {name} a flight to the capital of {country} on {day}.",
                "On {day}, {name} wants to fly to the capital of {country}.",
                "{name} has to be in the capital of {country} on {day}.",
            ),
            "{name} will fly to {city} on {day}.",
            (people, _pairs("country", "city", lexicon.CAPITALS), days),
        ),
        Intent(
            "capital",
            140,
            (
                "What is the capital of {country}? {name} wants to know.",
                "Tell {name} the capital of {country}.",
                "{name} asks which city is the capital of {country}.",
            ),
            "I will tell {name} it is {city}.",
            (people, _pairs("country", "city", lexicon.CAPITALS)),
        ),
        Intent(
            "opposite",
            220,
            (
                "What is the opposite of {word}? {name} wants to know.",
                "Tell {name} the opposite of {word}.",
                "{name} asks which word means the opposite of {word}.",
            ),
            "I will tell {name} it is {answer}.",
            (people, _pairs("word", "answer", opposites)),
        ),
        Intent(
            "message",
            1080,
            (
                "Tell {name} that the {event} is {state}.",
                "Let {name} know that the {event} is {state}.",
                "The {event} is {state}. Please tell {name}.",
            ),
            "I told {name} the {event} is {state}.",
            (people, events, _slot("state", tuple(word for word, _ in opposites))),
        ),
        Intent(
            "month",
            220,
            (
                "Which month comes after {word}? {name} wants to know.",
                "Tell {name} the month after {word}.",
                "{name} asks which month comes after {word}.",
            ),
            "I will tell {name} it is {answer}.",
            (people, _pairs("word", "answer", _successors(lexicon.MONTHS))),
        ),
        Intent(
            "weekday",
            130,
            (
                "Which day comes before {word}? {name} wants to know.",
                "Tell {name} the day before {word}.",
                "{name} asks which day comes before {word}.",
            ),
            "I will tell {name} it is {answer}.",
            (people, _pairs("answer", "word", _successors(lexicon.DAYS))),
        ),
        Intent(
            "calendar",
            1040,
            (
                "Plan the {event} with {name} in {month}.",
                "In {month}, I have a {event} with {name}.",
                "Put the {event} with {name} in my calendar for {month}.",
            ),
            "The {event} with {name} is in {month}.",
            (people, events, _slot("month", lexicon.MONTHS)),
        ),
        Intent(
            "shopping",
            340,
            (
                "{name} needs {food} and {other}.",
                "Put {food} and {other} on the list for {name}.",
                "Add {food} and {other} for {name}.",
            ),
            "{food} and {other} for {name}.",
            (people, foods),
        ),
        Intent(
            "spelling",
            200,
            (
                "How do you spell {word}? {name} wants to know.",
                "Tell {name} how to spell {word}.",
                "{name} asks how to spell {word}.",
            ),
            "I will tell {name} it is {letters}.",
            (people, spelled),
        ),
        Intent(
            "code",
            260,
            (
                "The code for {name} is {code}.",
                "Save the code {code} for {name}.",
                "{name} has the code {code}.",
            ),
            "The code of {name} is {code}.",
            (people, codes),
        ),
    )


def reply_patterns() -> dict[str, str]:
    """Return a regular expression per intent that matches its replies, with any name, and those of no other intent."""
    return {intent.name: _pattern_of(intent) for intent in default_intents()}


def _pattern_of(intent: Intent) -> str:
    words: dict[str, set[str]] = {}
    for slot in intent.slots:
        for values in slot:
            for place, word in values.items():
                words.setdefault(place, set()).add(word)
    parts = []
    for literal, place, _, _ in string.Formatter().parse(intent.reply):
        parts.append(re.escape(literal))
        if place is not None:
            # Corpora differ in names; a name is what no other place of these templates takes.
            parts.append(".+?" if place == "name" else f"(?:{'|'.join(map(re.escape, sorted(words[place])))})")
    return "".join(parts)
