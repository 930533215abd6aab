"""Assistant dialogues from templates: each reply is a function of what was heard."""

import itertools
import math
import random
import string
from collections.abc import Collection, Iterator, Sequence

from datamodules.synthetic import lexicon
from datamodules.synthetic.intents import Dialogue, Intent, default_intents
from lightning_modules.errors import UserError

Choice = tuple[int, ...]


def make_dialogues(
    num_dialogues: int, seed: int, names: Sequence[str] = lexicon.NAMES, excluded_replies: Collection[str] = ()
) -> list[Dialogue]:
    """Draw dialogues with distinct replies; within a slot the values are nearly equally frequent.

    Args:
        num_dialogues: How many to draw.
        seed: Equal seeds give equal lists.
        names: Who may be asked about.
        excluded_replies: Replies that no dialogue has.

    Returns:
        `num_dialogues` dialogues in random order. Equal queries have equal replies.

    Raises:
        UserError: If the templates do not hold as many distinct replies.
    """
    generator = random.Random(seed)
    intents = default_intents(names)
    excluded = [_excluded_choices(intent, frozenset(excluded_replies)) for intent in intents]
    capacities = [intent.capacity - len(choices) for intent, choices in zip(intents, excluded, strict=True)]
    dialogues: dict[str, Dialogue] = {}
    for intent, count, taken in zip(intents, _counts(intents, capacities, num_dialogues), excluded, strict=True):
        for choice in _balanced_choices([len(slot) for slot in intent.slots], count, taken, generator):
            dialogue = intent.render(choice, generator.choice(intent.queries))
            dialogues[dialogue.reply] = dialogue
    assert len(dialogues) == num_dialogues, "two choices of slots give one reply"
    drawn = list(dialogues.values())
    generator.shuffle(drawn)
    return drawn


def _excluded_choices(intent: Intent, excluded_replies: frozenset[str]) -> set[Choice]:
    if not excluded_replies:
        return set()
    return {choice for choice in _all_choices(intent) if intent.reply_to(choice) in excluded_replies}


def _all_choices(intent: Intent) -> Iterator[Choice]:
    return itertools.product(*(range(len(slot)) for slot in intent.slots))


def _counts(intents: tuple[Intent, ...], capacities: list[int], total: int) -> list[int]:
    """Return how many dialogues each intent gives: by its share, but never more than it holds."""
    if total > sum(capacities):
        raise UserError(
            f"dialogues: the templates hold {sum(capacities)} distinct replies, {total} are asked for; ask for fewer"
        )
    capacity_of = dict(zip(intents, capacities, strict=True))
    full: set[Intent] = set()
    while True:
        left = total - sum(capacity_of[intent] for intent in full)
        shares = sum(intent.share for intent in intents if intent not in full)
        overflowing = {
            intent for intent in intents if intent not in full and left * intent.share / shares > capacity_of[intent]
        }
        if not overflowing:
            break
        full |= overflowing
    counts, owed = [], 0.0
    for intent in intents:
        owed += capacity_of[intent] if intent in full else left * intent.share / shares
        counts.append(min(round(owed) - sum(counts), capacity_of[intent]))
    return counts


def _balanced_choices(sizes: list[int], count: int, excluded: set[Choice], generator: random.Random) -> list[Choice]:
    """Draw distinct tuples of slot indices, each slot's values nearly equally frequent."""
    if count > (math.prod(sizes) - len(excluded)) // 2:
        every = itertools.product(*map(range, sizes))
        return generator.sample([choice for choice in every if choice not in excluded], count)
    chosen: dict[Choice, None] = {}
    while len(chosen) < count:
        missing = count - len(chosen)
        columns = [_balanced_column(size, missing, generator) for size in sizes]
        chosen.update(dict.fromkeys(choice for choice in zip(*columns, strict=True) if choice not in excluded))
    return list(chosen)


def _balanced_column(size: int, count: int, generator: random.Random) -> list[int]:
    order = generator.sample(range(size), size)
    column = [order[i % size] for i in range(count)]
    generator.shuffle(column)
    return column


def reply_words(reply: str) -> list[str]:
    """Split a reply into its words, in lower case and without punctuation."""
    return reply.lower().translate(str.maketrans("", "", string.punctuation.replace("'", ""))).split()
