"""One parser for every reader of the released list: it takes what is right, and counts what is wrong by kind."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules.formats.item_errors import ItemError
from datamodules.formats.released_items import (
    SPECIAL_TOKENS,
    ReleasedItem,
    parse_item,
    read_entries,
    read_items,
)

SPECIAL = re.compile(SPECIAL_TOKENS)


def entry(**changes: object) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": "Yes."}]
    return {"id": "7", "speech": "set/a.wav", "units": "set/a.npy", "conversations": turns, **changes}


def reply(text: object) -> dict[str, Any]:
    return entry(conversations=[{"from": "human", "value": ""}, {"from": "gpt", "value": text}])


def test_an_item_holds_what_the_entry_names() -> None:
    item = parse_item(entry(id=7, transcript="Really?"), SPECIAL)
    assert item == ReleasedItem("7", "Yes.", "Really?", "set/a.wav", "set/a.npy")


def test_null_is_as_good_as_absent() -> None:
    item = parse_item(entry(transcript=None, speech=None))
    assert item.transcript is item.speech is None


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        (entry(id=None), "layout"),
        (entry(id=True), "layout"),
        (entry(id=""), "layout"),
        (entry(id="../7"), "path_outside_corpus"),
        ([], "layout"),
        (entry(conversations=None), "layout"),
        (entry(conversations=["Yes."]), "layout"),
        (reply("  "), "empty_reply"),
        (reply(None), "empty_reply"),
        (reply("\ud800"), "layout"),
        (reply("Yes.<|im_end|>"), "special_token"),
        (entry(transcript="<|audio|>?"), "special_token"),
        (entry(transcript=" "), "layout"),
        (entry(transcript=3), "layout"),
        (entry(speech=7), "layout"),
        (entry(units="a\0b"), "layout"),
        (entry(units="a\udcff"), "layout"),
        (entry(speech="/etc/passwd"), "path_outside_corpus"),
        (entry(units="../a.npy"), "path_outside_corpus"),
        (entry(units="set/../../a.npy"), "path_outside_corpus"),
        (entry(reply_speech=".."), "path_outside_corpus"),
    ],
)
def test_each_fault_has_its_kind(changed: Any, kind: str) -> None:
    with pytest.raises(ItemError) as caught:
        parse_item(changed, SPECIAL)
    assert caught.value.kind == kind


@pytest.mark.parametrize("text", ["a < b | c > d", "<b>", "a <| b", "||", "<||>"])
def test_text_that_only_looks_like_a_token_is_kept(text: str) -> None:
    assert parse_item(reply(text), SPECIAL).reply == text


def test_special_tokens_are_not_looked_for_unless_told() -> None:
    assert parse_item(reply("<|im_end|>")).reply == "<|im_end|>"


@given(parts=st.lists(st.sampled_from(["a", "..", ".", "", "b.c"]), min_size=1, max_size=6))
@example(parts=["a", "..", "b.c"])
def test_a_path_is_taken_if_and_only_if_it_stays_in_the_corpus(parts: list[str]) -> None:
    path, root = "/".join(parts), Path("/corpus")
    if not path:
        return
    stays = (root / path).resolve().is_relative_to(root)
    try:
        assert parse_item(entry(speech=path)).speech == path
        assert stays
    except ItemError as error:
        assert error.kind == "path_outside_corpus" and (not stays or path.startswith("/"))


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(["id", "speech", "units", "reply_speech", "conversations", "transcript"]), value=ANY_JSON)
def test_whatever_an_entry_holds_gives_an_item_or_a_fault(key: str, value: object) -> None:
    try:
        item = parse_item(entry(**{key: value}), SPECIAL)
    except ItemError as error:
        assert error.kind and str(error)
    else:
        json.dumps(vars(item), ensure_ascii=False).encode()


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(json.dumps(entry()).encode() + b'\n\n{"id": \n\xff\xfe\n' + json.dumps(entry(id="8")).encode())
    entries = read_entries(lines)
    assert [found["id"] if isinstance(found, dict) else type(found) for found in entries] == ["7", str, str, "8"]
    with pytest.raises(ValueError, match=r"a\.jsonl, entry 1: expected an object"):
        read_items(lines)


def test_required_keys_and_unique_names(tmp_path: Path) -> None:
    index = tmp_path / "a.json"
    index.write_text(json.dumps([entry(), entry(id="8", units=None), entry(id="9", units=None)]))
    assert [item.id for item in read_items(index, ["speech"])] == ["7", "8", "9"]
    with pytest.raises(ValueError, match="item '8': has no 'units' key, nor have 1 other items"):
        read_items(index, ["speech", "units"])
    index.write_text(json.dumps([entry(), entry()]))
    with pytest.raises(ValueError, match="'7': the id occurs 2 times"):
        read_items(index)
