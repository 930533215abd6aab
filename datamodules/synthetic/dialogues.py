"""Assistant dialogues from templates: each reply is a function of what was heard."""

import itertools
import math
import random
import string

from datamodules.synthetic.intents import Dialogue, Intent, default_intents
from lightning_modules.errors import UserError


def make_dialogues(num_dialogues: int, seed: int) -> list[Dialogue]:
    """Draw dialogues with distinct replies; within a slot the values are nearly equally frequent.

    Args:
        num_dialogues: How many to draw.
        seed: Equal seeds give equal lists.

    Returns:
        `num_dialogues` dialogues in random order. Equal queries have equal replies.

    Raises:
        UserError: If the templates do not hold as many distinct replies.
    """
    generator = random.Random(seed)
    intents = default_intents()
    dialogues: dict[str, Dialogue] = {}
    for intent, count in zip(intents, _counts(intents, num_dialogues), strict=True):
        for choice in _balanced_choices([len(slot) for slot in intent.slots], count, generator):
            dialogue = intent.render(choice, generator.choice(intent.queries))
            dialogues[dialogue.reply] = dialogue
    assert len(dialogues) == num_dialogues, "two choices of slots give one reply"
    drawn = list(dialogues.values())
    generator.shuffle(drawn)
    return drawn


def _counts(intents: tuple[Intent, ...], total: int) -> list[int]:
    """Return how many dialogues each intent gives: by its share, but never more than it holds."""
    capacity = sum(intent.capacity for intent in intents)
    if total > capacity:
        raise UserError(
            f"dialogues: the templates hold {capacity} distinct replies, {total} are asked for; ask for fewer"
        )
    full: set[Intent] = set()
    while True:
        left = total - sum(intent.capacity for intent in full)
        shares = sum(intent.share for intent in intents if intent not in full)
        overflowing = {
            intent for intent in intents if intent not in full and left * intent.share / shares > intent.capacity
        }
        if not overflowing:
            break
        full |= overflowing
    counts, owed = [], 0.0
    for intent in intents:
        owed += intent.capacity if intent in full else left * intent.share / shares
        counts.append(min(round(owed) - sum(counts), intent.capacity))
    return counts


def _balanced_choices(sizes: list[int], count: int, generator: random.Random) -> list[tuple[int, ...]]:
    """Draw distinct tuples of slot indices, each slot's values nearly equally frequent."""
    capacity = math.prod(sizes)
    if count > capacity // 2:
        return generator.sample(list(itertools.product(*map(range, sizes))), count)
    chosen: dict[tuple[int, ...], None] = {}
    while len(chosen) < count:
        missing = count - len(chosen)
        columns = [_balanced_column(size, missing, generator) for size in sizes]
        chosen.update(dict.fromkeys(zip(*columns, strict=True)))
    return list(chosen)


def _balanced_column(size: int, count: int, generator: random.Random) -> list[int]:
    order = generator.sample(range(size), size)
    column = [order[i % size] for i in range(count)]
    generator.shuffle(column)
    return column


def reply_words(reply: str) -> list[str]:
    """Split a reply into its words, in lower case and without punctuation."""
    return reply.lower().translate(str.maketrans("", "", string.punctuation.replace("'", ""))).split()
