"""The words that fill the slots of the dialogues.

Words of one slot differ clearly in sound, no two words of the lexicon sound alike, and none is so rare that a small
model would meet it less than about a hundred times in a corpus of some thousand replies. Most are short, so that a
reply is a few blocks of speech tokens.
"""

import re
from collections.abc import Sequence

from lightning_modules.errors import UserError

NAMES = (
    "Tom", "Alice", "Robert", "Emma", "Kevin", "Lucy", "George", "Laura", "Oscar", "Michael",
    "Julia", "Peter", "Naomi", "Hugo", "Olivia", "Edward", "Chloe", "David", "Ruby", "Jack",
)  # fmt: skip

# For a model that learns further names: each differs from every other word of the lexicon by at least two phonemes of
# eSpeak, and takes two or three pieces of the quickstart's tokenizer. Longer ones have more text than their time
# has audio embeddings (10 per second) and anchors.
NEW_NAMES = (
    "Abel", "Ada", "Adam", "Adele", "Alan", "Alma", "Amber", "Amelia", "Amy", "Ana",
    "Ariel", "Astrid", "Bella", "Beth", "Betty", "Bob", "Boris", "Brian", "Cara", "Carlo",
    "Carmen", "Celia", "Cindy", "Clive", "Colin", "Craig", "Dale", "Dana", "Diana", "Dino",
    "Dirk", "Don", "Dora", "Doug", "Drew", "Dylan", "Edna", "Edwin", "Elias", "Elmer",
    "Eric", "Eva", "Frank", "Garth", "Gary", "Gavin", "Gina", "Glen", "Grace", "Grant",
    "Greg", "Gus", "Harlan", "Harold", "Herman", "Howard", "Ian", "Igor", "Iris", "Ivan",
    "Ivy", "Jade", "James", "Janet", "Jared", "Jerome", "Juan", "Judy", "Lance", "Liam",
    "Lily", "Linda", "Lois", "Maria", "Mario", "Mary", "Maureen", "Max", "Milo", "Moses",
    "Myra", "Nadia", "Nancy", "Norman", "Otis", "Percy", "Petra", "Rene", "Rex", "Rita",
    "Roman", "Rosa", "Russell", "Sally", "Sara", "Selma", "Stan", "Stella", "Sven", "Tracy",
)  # fmt: skip

NAME_LISTS = {"old": NAMES, "new": NEW_NAMES}


def find_names(given: Sequence[str]) -> tuple[str, ...]:
    """Put the lists in place of their names.

    Args:
        given: Keys of NAME_LISTS, and names.

    Returns:
        Names, each once.

    Raises:
        UserError: If there is none, or one is no word with a capital.
    """
    names = [name for entry in given for name in NAME_LISTS.get(entry, (entry,))]
    odd = [name for name in names if not re.fullmatch("[A-Z][A-Za-z']*", name)]
    if odd or not names:
        raise UserError(
            f"names={list(given)}: {odd or 'an empty list'} cannot be asked about; give {' or '.join(NAME_LISTS)}, or "
            "words that begin with a capital"
        )
    return tuple(dict.fromkeys(names))


def new_names() -> list[str]:
    """Give NEW_NAMES to a configuration."""
    return list(NEW_NAMES)


ROOMS = ("kitchen", "bedroom", "garden", "office", "attic", "hallway", "cellar", "porch", "study", "garage")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

# Without "two", "four" and "eight", which sound like "to", "for" and "ate".
NUMBERS = ("three", "five", "six", "seven", "nine", "ten", "eleven", "twelve")
MINUTES = ("o'clock", "fifteen", "thirty")

TASKS = (
    "call the bank", "buy some flowers", "feed the cat", "wash the car", "paint the fence", "pack the bags",
)  # fmt: skip

FOODS = ("bread", "pasta", "soup", "chicken", "carrots", "coffee", "rice", "beans")

SONG_FIRST = ("silver", "golden", "lonely", "crazy", "purple", "midnight")
SONG_SECOND = ("river", "island", "thunder", "castle", "dragon", "cowboy")

DEVICES = ("lamp", "heater", "radio", "camera", "fan")

THINGS = ("passport", "umbrella", "wallet", "guitar", "hammer")

CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Egypt", "Cairo"),
    ("Spain", "Madrid"), ("Russia", "Moscow"), ("Cuba", "Havana"), ("Germany", "Berlin"),
)  # fmt: skip

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("happy", "sad"), ("clean", "dirty"), ("loud", "quiet"), ("early", "late"),
)  # fmt: skip

EVENTS = ("concert", "party", "picnic", "wedding", "dinner", "market")

# Short words of letters whose names do not rhyme.
SPELLED = ("rose", "lime", "oil", "Omar", "Lisa", "hero", "arm", "home", "Amos", "Mia", "Leo", "hair")
# Codes to copy: few letters, those that the spelled words use least, so that each is heard as often as other words are.
CODE_LETTERS = ("E", "H", "L", "R", "S")
