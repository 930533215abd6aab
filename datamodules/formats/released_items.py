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

from datamodules.formats.item_errors import ItemError, require_clean, require_unicode
from datamodules.formats.released_turns import SPEECH_MARK, parse_turns
from lightning_modules.dialogue import Turn
from lightning_modules.errors import UserError

OTHER_PATHS = ("units", "reply_speech")

# The text of a control token of a chat template, such as <|im_end|>.
SPECIAL_TOKENS = r"<\|[^<>|]+\|>"


@dataclass(frozen=True)
class ReleasedItem:
    """One item of a list; what it does not name is None.

    Attributes:
        id: Its name.
        reply: The reply as text.
        transcript: The query as text.
        history: Turns before the query, the oldest first.
        speech: Path of the query's audio.
        history_speech: Paths of the audio of spoken turns before the query; none if the query has no audio either.
        units: Path of the reply's speech tokens.
        reply_speech: Path of the reply's audio.
    """

    id: str
    reply: str
    transcript: str | None = None
    speech: str | None = None
    units: str | None = None
    reply_speech: str | None = None
    history: tuple[Turn, ...] = ()
    history_speech: tuple[str, ...] = ()


@dataclass(frozen=True)
class ItemTexts:
    """What is said in an item.

    Attributes:
        reply: The reply as text.
        transcript: The query as text, if known.
        history: Turns before the query, the oldest first.
    """

    reply: str
    transcript: str | None = None
    history: tuple[Turn, ...] = ()


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
    texts = parse_texts(entry, special_tokens)
    speech, history_speech = _speech_paths(entry.get("speech"), texts.history)
    paths = {key: None if entry.get(key) is None else _path(key, entry[key]) for key in OTHER_PATHS}
    return ReleasedItem(
        name,
        texts.reply,
        texts.transcript,
        speech,
        **paths,
        history=texts.history,
        history_speech=history_speech,
    )


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


def parse_texts(entry: dict[str, Any], special_tokens: re.Pattern[str] | None = None) -> ItemTexts:
    """Return the reply of an entry, the transcript of its query if it is there, and the turns before the query.

    Args:
        entry: Holds `conversations`, or else `reply`, and perhaps `transcript`.
        special_tokens: What no text may hold; not checked if None.

    Raises:
        ItemError: If the reply is missing or empty, turns are out of order, or a text cannot be trained on.
    """
    history: tuple[Turn, ...] = ()
    if "conversations" in entry or "reply" not in entry:
        reply, history = parse_turns(entry.get("conversations"), special_tokens)
        what = "the reply (the 'value' of 'gpt')"
    else:
        reply, what = entry["reply"], "the reply"
    if not isinstance(reply, str) or not reply.strip():
        raise ItemError("empty_reply", f"{what} is empty; drop the item or give it a reply")
    transcript = entry.get("transcript")
    if transcript is not None and not (isinstance(transcript, str) and transcript.strip()):
        raise ItemError("layout", f"'transcript' must be a string that is not empty; found {transcript!r}")
    for which, text in ((what, reply), ("'transcript'", transcript or "")):
        require_clean(which, text, special_tokens)
    return ItemTexts(reply, transcript, history)


def _speech_paths(value: Any, history: Sequence[Turn]) -> tuple[str | None, tuple[str, ...]]:
    """Return the path of the query's audio, and those of the spoken turns before it, in order."""
    if value is None:
        return None, ()
    paths = [_path("speech", one) for one in (value if isinstance(value, list) else [value])]
    num_spoken = sum(turn.is_spoken for turn in history)
    if len(paths) != num_spoken + 1:
        raise ItemError(
            "layout",
            f"'speech' names {len(paths)} files for {num_spoken} earlier turns {SPEECH_MARK!r} and the query; give a "
            "list of their paths in order, or write earlier turns as text",
        )
    return paths[-1], tuple(paths[:-1])


def _path(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ItemError("layout", f"{key!r} must be a string that is not empty, a path; found {value!r}")
    require_unicode(repr(key), value)
    if posixpath.isabs(value) or posixpath.normpath(value).split("/")[0] == "..":
        raise ItemError(
            "path_outside_corpus", f"{key!r} leads out of the corpus ({value}); name a path that starts in its folder"
        )
    return value


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
