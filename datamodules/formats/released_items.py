"""The list of a corpus in the released layout, and what one of its items has to be.

Everything that reads such a list reads it here: for training as for conversion, benchmarks and writers of tokens.
"""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.errors import UserError

PATHS = ("speech", "units", "reply_speech")

# The text of a control token of a chat template, such as <|im_end|>.
SPECIAL_TOKENS = r"<\|[^<>|]+\|>"


class ItemError(UserError):
    """What is wrong with one item of a list.

    Args:
        kind: One of a few words to count by: "layout", "empty_reply", "special_token", "path_outside_corpus", or a word
            of those who check more.
        problem: What is wrong, without the name of the item.
    """

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


@dataclass(frozen=True)
class ReleasedItem:
    """One item of a list; what it does not name is None.

    Attributes:
        id: Its name.
        reply: The reply as text.
        transcript: The query as text.
        speech: Path of the query's audio.
        units: Path of the reply's speech tokens.
        reply_speech: Path of the reply's audio.
    """

    id: str
    reply: str
    transcript: str | None = None
    speech: str | None = None
    units: str | None = None
    reply_speech: str | None = None


def parse_item(entry: Any, special_tokens: re.Pattern[str] | None = None) -> ReleasedItem:
    """Check an entry of a list.

    Args:
        entry: What the list holds.
        special_tokens: What no text may hold; not checked if None.

    Returns:
        The item; its paths start from the folder of the corpus and stay in it.

    Raises:
        ItemError: If the entry does not have the released layout.
    """
    name = parse_id(entry)
    reply, transcript = parse_texts(entry, special_tokens)
    paths = {key: None if entry.get(key) is None else _path(key, entry[key]) for key in PATHS}
    return ReleasedItem(name, reply, transcript, **paths)


def parse_id(entry: Any) -> str:
    """Return the name of an entry.

    Raises:
        ItemError: If it has none, or one that cannot name a file in the corpus.
    """
    name = entry.get("id") if isinstance(entry, dict) else None
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        found = json.dumps(entry, ensure_ascii=False, default=str)[:80]
        raise ItemError("layout", f"expected an object with an 'id' key, a string or an integer; found {found}")
    return _path("id", str(name))


def parse_texts(entry: dict[str, Any], special_tokens: re.Pattern[str] | None = None) -> tuple[str, str | None]:
    """Return the reply of an entry and, if it is there, the transcript of its query.

    Args:
        entry: Holds `conversations`, or else `reply`, and perhaps `transcript`.
        special_tokens: What no text may hold; not checked if None.

    Raises:
        ItemError: If the reply is missing or empty, or a text cannot be trained on.
    """
    if "conversations" in entry or "reply" not in entry:
        reply, what = _last_turn(entry.get("conversations")), "the reply (the 'value' of 'gpt')"
    else:
        reply, what = entry["reply"], "the reply"
    if not isinstance(reply, str) or not reply.strip():
        raise ItemError("empty_reply", f"{what} is empty; drop the item or give it a reply")
    transcript = entry.get("transcript")
    if transcript is not None and not (isinstance(transcript, str) and transcript.strip()):
        raise ItemError("layout", f"'transcript' must be a string that is not empty; found {transcript!r}")
    for which, text in ((what, reply), ("'transcript'", transcript or "")):
        _require_unicode(which, text)
        special = special_tokens.search(text) if special_tokens is not None else None
        if special:
            raise ItemError("special_token", f"{which} holds the special token {special[0]!r}; remove it")
    return reply, transcript


def _last_turn(turns: Any) -> Any:
    is_list = isinstance(turns, list)
    speakers = [turn.get("from") if isinstance(turn, dict) else None for turn in turns] if is_list else None
    if speakers != ["human", "gpt"]:
        raise ItemError(
            "layout", f"'conversations' must hold one turn from 'human', then one from 'gpt'; found {speakers}"
        )
    return turns[1].get("value")


def _path(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ItemError("layout", f"{key!r} must be a string that is not empty, a path; found {value!r}")
    _require_unicode(repr(key), value)
    if posixpath.isabs(value) or posixpath.normpath(value).split("/")[0] == "..":
        raise ItemError(
            "path_outside_corpus", f"{key!r} leads out of the corpus ({value}); name a path that starts in its folder"
        )
    return value


def _require_unicode(which: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ItemError("layout", f"{which} is not valid Unicode ({error}); fix its encoding") from error


def read_entries(index: Path) -> list[Any]:
    """Read the entries of a list without checking them.

    Args:
        index: A JSON list, or JSON lines in a file `*.jsonl`.

    Returns:
        The entries; in place of a line that is not valid JSON, its text.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not valid JSON, or not a list with at least one entry.
    """
    if not index.is_file():
        raise FileNotFoundError(f"{index}: no such index of spoken examples; make the corpus or fix the path")
    if index.suffix == ".jsonl":
        with index.open("rb") as lines:
            entries = [_parse_line(line) for line in lines if line.strip()]
    else:
        try:
            entries = json.loads(index.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{index}: not valid JSON ({error}); make it again") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{index}: expected a JSON list with at least one item")
    return entries


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode(errors="replace").strip()


def read_items(index: Path, required: Sequence[str] = ()) -> list[ReleasedItem]:
    """Read a list of which every item must be right.

    Args:
        index: A JSON list, or JSON lines in a file `*.jsonl`.
        required: Keys that every item must have: some of "speech", "units", "reply_speech", "transcript".

    Returns:
        Its items, each with a name of its own.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If the file or one of its items does not have the released layout.
    """
    items = []
    for place, entry in enumerate(read_entries(index)):
        try:
            items.append(parse_item(entry))
        except ItemError as error:
            name = f"item {entry['id']!r}" if isinstance(entry, dict) and "id" in entry else f"entry {place}"
            raise UserError(f"{index}, {name}: {error}") from error
    name, count = Counter(item.id for item in items).most_common(1)[0]
    if count > 1:
        raise UserError(f"{index}, item {name!r}: the id occurs {count} times; make ids unique")
    for key in required:
        absent = [item.id for item in items if getattr(item, key) is None]
        if absent:
            raise UserError(
                f"{index}, item {absent[0]!r}: has no {key!r} key, nor have {len(absent) - 1} other items; add it"
            )
    return items
