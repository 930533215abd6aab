"""The templates of the assistant dialogues: what may be asked, and the one reply to it."""

import itertools
import math
from dataclasses import dataclass

from datamodules import lexicon


@dataclass(frozen=True)
class Dialogue:
    """One query and its reply.

    Args:
        intent: which template it comes from.
        query: what the user says.
        reply: what the assistant answers.
    """

    intent: str
    query: str
    reply: str


@dataclass(frozen=True, eq=False)
class Intent:
    """A family of dialogues.

    Args:
        name: its name.
        share: its part of the corpus, relative to the other intents.
        queries: phrasings with `{slot}` places; one is drawn for each dialogue.
        reply: the one phrasing of the reply.
        slots: each slot's values; a value is a dict from place to word, so that one slot may fill several places.
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
        """Fills one choice of slot values into a phrasing."""
        words = {
            place: word for slot, index in zip(self.slots, choice, strict=True) for place, word in slot[index].items()
        }
        return Dialogue(self.name, phrasing.format(**words), self.reply.format(**words))


def _slot(place: str, words: tuple[str, ...]) -> tuple[dict[str, str], ...]:
    return tuple({place: word} for word in words)


def _pairs(first: str, second: str, pairs: tuple[tuple[str, str], ...]) -> tuple[dict[str, str], ...]:
    return tuple({first: a, second: b} for a, b in pairs)


def _neighbours(cycle: tuple[str, ...]) -> tuple[dict[str, str], ...]:
    following = zip(cycle, cycle[1:] + cycle[:1], strict=True)
    rows = []
    for earlier, later in following:
        rows.append({"word": earlier, "side": "after", "answer": later})
        rows.append({"word": later, "side": "before", "answer": earlier})
    return tuple(rows)


def default_intents() -> tuple[Intent, ...]:
    """The embedded templates."""
    names = _slot("name", lexicon.NAMES)
    rooms = _slot("room", lexicon.ROOMS)
    days = _slot("day", lexicon.DAYS)
    events = _slot("event", lexicon.EVENTS)
    opposites = lexicon.OPPOSITES + tuple((b, a) for a, b in lexicon.OPPOSITES)
    foods = tuple({"food": a, "other": b} for a, b in itertools.permutations(lexicon.FOODS, 2))
    codes = tuple({"code": ", ".join(letters)} for letters in itertools.permutations(lexicon.LETTERS, 2))
    spelled = tuple({"word": word, "letters": ", ".join(word.upper())} for word in lexicon.SPELLED)
    moments = tuple({"time": f"{hour} {minute}"} for hour in lexicon.NUMBERS for minute in lexicon.MINUTES)
    songs = tuple({"song": f"{a} {b}"} for a in lexicon.SONG_FIRST for b in lexicon.SONG_SECOND)
    switches = tuple({"device": device, "state": state} for device in lexicon.DEVICES for state in ("on", "off"))
    return (
        Intent(
            "reminder",
            700,
            (
                "Remind {name} to {task} on {day}.",
                "Please remind {name} to {task} on {day}.",
                "On {day}, {name} should {task}.",
            ),
            "I will remind {name} to {task} on {day}.",
            (names, _slot("task", lexicon.TASKS), days),
        ),
        Intent(
            "alarm",
            400,
            ("Wake {name} at {time}.", "Set an alarm for {name} at {time}.", "{name} has to get up at {time}."),
            "The alarm for {name} will ring at {time}.",
            (names, moments),
        ),
        Intent(
            "timer",
            560,
            (
                "{name} here. Set a timer of {number} minutes for the {food}.",
                "This is {name}. The {food} should cook for {number} minutes.",
                "I am {name}. Time the {food}, {number} minutes.",
            ),
            "{name}, your {food} will take {number} minutes.",
            (names, _slot("food", lexicon.FOODS), _slot("number", lexicon.NUMBERS)),
        ),
        Intent(
            "song",
            690,
            (
                "Play {song} for {name} in the {room}.",
                "{name} wants to hear {song} in the {room}.",
                "In the {room}, put on {song} for {name}.",
            ),
            "Playing {song} for {name} in the {room}.",
            (songs, names, rooms),
        ),
        Intent(
            "switch",
            590,
            (
                "{name} here. Turn {state} the {device} in the {room}.",
                "This is {name}. Switch the {room} {device} {state}.",
                "I am {name}. Please turn the {device} in the {room} {state}.",
            ),
            "Okay {name}, the {room} {device} is now {state}.",
            (names, rooms, switches),
        ),
        Intent(
            "where",
            580,
            (
                "{name} left the {thing} in the {room}.",
                "Remember that {name} put the {thing} in the {room}.",
                "In the {room} is the {thing} of {name}.",
            ),
            "I noted that the {thing} of {name} is in the {room}.",
            (names, rooms, _slot("thing", lexicon.THINGS)),
        ),
        Intent(
            "trip",
            790,
            (
                "Book {name} a flight to the capital of {country} on {day}.",
                "On {day}, {name} wants to fly to the capital of {country}.",
                "{name} has to be in the capital of {country} on {day}.",
            ),
            "{name} will fly to {city} in {country} on {day}.",
            (names, _pairs("country", "city", lexicon.CAPITALS), days),
        ),
        Intent(
            "capital",
            140,
            (
                "This is {name}. What is the capital of {country}?",
                "{name} here. Tell me the capital of {country}.",
                "I am {name}. Which city is the capital of {country}?",
            ),
            "{name}, the capital of {country} is {city}.",
            (names, _pairs("country", "city", lexicon.CAPITALS)),
        ),
        Intent(
            "opposite",
            220,
            (
                "This is {name}. What is the opposite of {word}?",
                "{name} here. Tell me the opposite of {word}.",
                "I am {name}. Which word means the opposite of {word}?",
            ),
            "{name}, the opposite of {word} is {answer}.",
            (names, _pairs("word", "answer", opposites)),
        ),
        Intent(
            "message",
            980,
            (
                "Tell {name} that the {event} is {state}.",
                "Let {name} know that the {event} is {state}.",
                "The {event} is {state}. Please tell {name}.",
            ),
            "I will tell {name} that the {event} is {state}.",
            (names, events, _slot("state", tuple(word for word, _ in opposites))),
        ),
        Intent(
            "month",
            460,
            (
                "This is {name}. Which month comes {side} {word}?",
                "{name} here. Tell me the month {side} {word}.",
                "I am {name}. What is the month {side} {word}?",
            ),
            "{name}, the month {side} {word} is {answer}.",
            (names, _neighbours(lexicon.MONTHS)),
        ),
        Intent(
            "weekday",
            160,
            (
                "This is {name}. Which day comes {side} {word}?",
                "{name} here. Tell me the day {side} {word}.",
                "I am {name}. What is the day {side} {word}?",
            ),
            "{name}, the day {side} {word} is {answer}.",
            (names, _neighbours(lexicon.DAYS)),
        ),
        Intent(
            "calendar",
            470,
            (
                "Plan the {event} with {name} in {month}.",
                "In {month}, I have a {event} with {name}.",
                "Put the {event} with {name} in my calendar for {month}.",
            ),
            "Your {event} with {name} is planned for {month}.",
            (names, events, _slot("month", lexicon.MONTHS)),
        ),
        Intent(
            "shopping",
            340,
            (
                "{name} needs {food} and {other}.",
                "Put {food} and {other} on the list for {name}.",
                "Add {food} and {other} for {name}.",
            ),
            "The {food} and the {other} are listed for {name}.",
            (names, foods),
        ),
        Intent(
            "spelling",
            200,
            (
                "This is {name}. How do you spell {word}?",
                "{name} here. Spell {word}.",
                "I am {name}. Tell me how to spell {word}.",
            ),
            "{name}, you spell it {letters}.",
            (names, spelled),
        ),
        Intent(
            "code",
            260,
            (
                "The code for {name} is {code}.",
                "Save the code {code} for {name}.",
                "{name} has the code {code}.",
            ),
            "I saved the code {code} for {name}.",
            (names, codes),
        ),
    )
