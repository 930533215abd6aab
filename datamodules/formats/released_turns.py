"""The turns of `conversations` in the released layout: the last reply, and what was said before the last query."""

import re
from typing import Any

from datamodules.formats.item_errors import ItemError, require_clean
from lightning_modules.dialogue import ASSISTANT, USER, Turn

# Stands in a human turn for its audio, as in VocalNet's sets.
SPEECH_MARK = "<speech>"

_HUMAN, _GPT = "human", "gpt"


def parse_turns(turns: Any, special_tokens: re.Pattern[str] | None = None) -> tuple[Any, tuple[Turn, ...]]:
    """Check the turns of an item.

    A human turn before the last one is spoken if its `value` is `<speech>`, with its text in `transcript` if that is
    known, and written otherwise. The last human turn is the query, whatever its `value`.

    Args:
        turns: What `conversations` holds.
        special_tokens: What no text may hold; not checked if None.

    Returns:
        The value of the last turn, not checked, and the turns before the query.

    Raises:
        ItemError: If turns do not alternate from `human` to `gpt`, or an earlier one cannot be used.
    """
    is_list = isinstance(turns, list)
    speakers = [turn.get("from") if isinstance(turn, dict) else None for turn in turns] if is_list else None
    if not speakers or speakers != [_HUMAN, _GPT] * (len(speakers) // 2):
        raise ItemError(
            "layout",
            f"'conversations' must alternate turns from 'human' and 'gpt' and end with 'gpt'; found {speakers}",
        )
    earlier = [_parse_turn(place, turn, special_tokens) for place, turn in enumerate(turns[:-2], start=1)]
    return turns[-1].get("value"), tuple(earlier)


def _parse_turn(place: int, turn: dict[str, Any], special_tokens: re.Pattern[str] | None) -> Turn:
    which, value = f"turn {place} of 'conversations'", turn.get("value")
    if not isinstance(value, str) or not value.strip():
        raise ItemError("layout", f"{which} has no text; give its 'value', or drop the turn and its answer")
    if turn["from"] == _GPT:
        require_clean(which, value, special_tokens)
        return Turn(ASSISTANT, value)
    if SPEECH_MARK not in value:
        require_clean(which, value, special_tokens)
        return Turn(USER, value)
    if value.strip() != SPEECH_MARK:
        raise ItemError("layout", f"{which} mixes {SPEECH_MARK} with text ({value!r}); give one of the two")
    transcript = turn.get("transcript")
    if transcript is not None:
        if not isinstance(transcript, str) or not transcript.strip():
            raise ItemError("layout", f"{which}: 'transcript' must be a string that is not empty; found {transcript!r}")
        require_clean(f"the 'transcript' of {which}", transcript, special_tokens)
    return Turn(USER, transcript, is_spoken=True)
