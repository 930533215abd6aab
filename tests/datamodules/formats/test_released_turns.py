"""Earlier turns of the released layout: what is read, what is refused, and which file belongs to which turn."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.formats.item_errors import ItemError
from datamodules.formats.released_items import SPECIAL_TOKENS, parse_item
from datamodules.formats.released_turns import parse_turns
from lightning_modules.dialogue import Turn

SPECIAL = re.compile(SPECIAL_TOKENS)
LAST = [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": "Yes."}]


def human(value: Any, **more: Any) -> dict[str, Any]:
    return {"from": "human", "value": value, **more}


def gpt(value: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": value}


def test_earlier_turns_are_spoken_or_written() -> None:
    earlier = [
        human("<speech>"),
        gpt("One."),
        human("<speech>\n", transcript="Two?"),
        gpt("Two."),
        human("Three?"),
        gpt("3."),
    ]
    reply, turns = parse_turns([*earlier, *LAST], SPECIAL)
    assert reply == "Yes."
    assert turns == (
        Turn("user", is_spoken=True),
        Turn("assistant", "One."),
        Turn("user", "Two?", is_spoken=True),
        Turn("assistant", "Two."),
        Turn("user", "Three?"),
        Turn("assistant", "3."),
    )


@pytest.mark.parametrize(
    ("earlier", "kind", "message"),
    [
        ([human("Hi.")], "layout", r"must alternate .*\['human', 'human', 'gpt'\]"),
        ([gpt("Hi.")], "layout", "must alternate"),
        ([{"from": "system", "value": "Be brief."}], "layout", "must alternate"),
        ([human(""), gpt("Hi.")], "layout", "turn 1 of 'conversations' has no text"),
        ([human("Hi."), gpt(None)], "layout", "turn 2 of 'conversations' has no text"),
        ([human("Hi.<|im_end|>"), gpt("Hi.")], "special_token", "turn 1 of 'conversations' holds"),
        ([human("Hi."), gpt("<|eot_id|>")], "special_token", "turn 2 of 'conversations' holds"),
        ([human("<speech>", transcript="<|a|>"), gpt("Hi.")], "special_token", "'transcript' of turn 1"),
        ([human("<speech>", transcript=" "), gpt("Hi.")], "layout", "turn 1 .* 'transcript' must be a string"),
        ([human("<speech> Translate."), gpt("Hi.")], "layout", "mixes <speech> with text"),
        ([human("\ud800"), gpt("Hi.")], "layout", "not valid Unicode"),
    ],
)
def test_each_fault_has_its_kind(earlier: list[dict], kind: str, message: str) -> None:
    with pytest.raises(ItemError, match=message) as caught:
        parse_turns([*earlier, *LAST], SPECIAL)
    assert caught.value.kind == kind


@given(spoken=st.lists(st.booleans(), max_size=4), num_paths=st.integers(0, 6))
def test_paths_are_as_many_as_spoken_turns_and_the_query(spoken: list[bool], num_paths: int) -> None:
    turns = [turn for is_spoken in spoken for turn in (human("<speech>" if is_spoken else "Hi."), gpt("Hi."))]
    paths = [f"{place}.wav" for place in range(num_paths)]
    entry = {"id": "1", "speech": paths, "conversations": [*turns, *LAST]}
    if num_paths == sum(spoken) + 1:
        item = parse_item(entry)
        assert (*item.history_speech, item.speech) == tuple(paths)
    else:
        with pytest.raises(ItemError, match=f"'speech' names {num_paths} files for {sum(spoken)} earlier turns"):
            parse_item(entry)


def test_one_path_is_that_of_the_query() -> None:
    written = {"id": "1", "speech": "a.wav", "conversations": [human("Hi."), gpt("Hi."), *LAST]}
    assert parse_item(written).speech == parse_item({**written, "speech": ["a.wav"]}).speech == "a.wav"
    without = {"id": "1", "conversations": [human("<speech>"), gpt("Hi."), *LAST]}
    assert parse_item(without).history_speech == (), "who hears nothing needs no files"
    with pytest.raises(ItemError, match="leads out of the corpus"):
        parse_item({**written, "speech": ["../a.wav"]})
