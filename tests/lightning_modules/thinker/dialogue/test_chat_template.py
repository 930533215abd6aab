"""A tokenizer's own template prints the turns of a dialogue; the same code serves every family."""

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.dialogue import Turn
from lightning_modules.errors import UserError
from lightning_modules.thinker.dialogue.chat_template import ChatTemplate
from lightning_modules.thinker.dialogue.prompt import ChatPrompt
from lightning_modules.thinker.dialogue.settings import DialogueSettings
from tests.lightning_modules.thinker.dialogue.families import (
    FAMILIES,
    LLAMA3_2,
    QWEN2_5,
    QWEN3,
    Family,
    make_family_tokenizer,
)

TOKENIZERS = {family.name: make_family_tokenizer(family) for family in FAMILIES}
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def template_of(family: Family, system_prompt: str | None = None) -> ChatTemplate:
    return ChatTemplate(TOKENIZERS[family.name], family.audio_token, system_prompt)


def expected(family: Family, turns: list[Turn], start: str) -> list[str]:
    """Write down the prompt by hand, cut at its audios."""
    text = start
    for turn in turns:
        before, behind = family.user if turn.role == "user" else family.assistant
        text += before + (family.audio_token if turn.is_spoken else turn.text or "") + behind
    text += family.user[0] + family.audio_token + family.user[1] + family.generation
    return text.split(family.audio_token)


@each_family
@pytest.mark.parametrize("system_prompt", [None, "Be brief."])
@pytest.mark.parametrize("spoken", [(), (True,), (False,), (True, False, True)])
def test_prompts_are_those_of_the_family(family: Family, system_prompt: str | None, spoken: tuple[bool, ...]) -> None:
    turns = []
    for is_spoken in spoken:
        turns += [Turn("user", "Wake me.", is_spoken=is_spoken), Turn("assistant", "I will.")]
    start = family.start if system_prompt is None else family.start_with_system
    ids = template_of(family, system_prompt).render(turns)
    tokenizer = TOKENIZERS[family.name]
    assert [tokenizer.decode(part) for part in ids] == expected(family, turns, start)
    assert ids == [tokenizer(part, add_special_tokens=False)["input_ids"] for part in expected(family, turns, start)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(FAMILIES), st.lists(st.booleans(), max_size=5))
def test_there_is_one_place_for_each_spoken_turn(family: Family, spoken: list[bool]) -> None:
    turns = [
        turn
        for place, is_spoken in enumerate(spoken)
        for turn in (Turn("user", f"Query {place}?", is_spoken=is_spoken), Turn("assistant", f"Reply {place}."))
    ]
    ids = template_of(family).render(turns)
    assert len(ids) == 2 + sum(spoken)
    text = TOKENIZERS[family.name].decode([token_id for part in ids for token_id in part])
    places = [text.index(f"Reply {place}.") for place in range(len(spoken))]
    assert places == sorted(places)
    assert all((f"Query {place}?" in text) != is_spoken for place, is_spoken in enumerate(spoken))


@each_family
def test_a_turn_ends_as_the_template_says(family: Family) -> None:
    end = family.assistant[1].strip()
    assert template_of(family).end_of_turn_id == TOKENIZERS[family.name].convert_tokens_to_ids(end)


def test_a_reply_also_stops_where_the_text_or_the_model_ends() -> None:
    tokenizer = TOKENIZERS["llama3_2"]
    prompt = ChatPrompt(tokenizer, LLAMA3_2.audio_token)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")}
    assert prompt.stop_ids(()) == {ids["<|end_of_text|>"], ids["<|eot_id|>"]}
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    assert prompt.stop_ids([ids["<|eom_id|>"], letter]) == set(ids.values()), "a text may hold the letter"


def test_thinking_is_a_variable_of_the_template() -> None:
    tokenizer = TOKENIZERS["qwen3"]
    assert tokenizer.decode(template_of(QWEN3).render(())[-1]).endswith("<think>\n\n</think>\n\n")
    thinking = ChatTemplate(tokenizer, QWEN3.audio_token, variables={"enable_thinking": True})
    assert tokenizer.decode(thinking.render(())[-1]).endswith("assistant\n")


def test_a_prompt_does_not_change_from_day_to_day() -> None:
    tokenizer = TOKENIZERS["llama3_2"]
    today = datetime.date.today().strftime("%d %b %Y")
    assert f"Today Date: {today}" in tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "Today Date: 26 Jul 2024\n" in tokenizer.decode(template_of(LLAMA3_2).render(())[0])
    later = ChatTemplate(tokenizer, LLAMA3_2.audio_token, date="2026-02-03")
    assert "Today Date: 03 Feb 2026\n" in tokenizer.decode(later.render(())[0])
    with pytest.raises(UserError, match=r"dialogue\.date is 'today', not a date .*YYYY-MM-DD"):
        ChatTemplate(tokenizer, LLAMA3_2.audio_token, date="today")


@each_family
def test_no_text_may_hold_a_special_token(family: Family) -> None:
    prompt = ChatPrompt(TOKENIZERS[family.name], family.audio_token)
    for token in family.special_tokens:
        with pytest.raises(UserError, match="special or unknown tokens"):
            prompt.encode_replies([f"Yes.{token}"])
        with pytest.raises(UserError, match="an earlier turn of the user, .* has special or unknown tokens"):
            prompt.around_audio([Turn("user", f"Yes.{token}"), Turn("assistant", "No.")])


def test_a_transcription_needs_a_blank_that_no_text_holds() -> None:
    tokenizer = TOKENIZERS["llama3_2"]
    with pytest.raises(UserError, match=r"has no pad_token.*set dialogue\.blank_token"):
        _ = ChatPrompt(tokenizer, LLAMA3_2.audio_token).blank_id
    named = ChatPrompt(tokenizer, LLAMA3_2.audio_token, settings=DialogueSettings(blank_token=LLAMA3_2.blank_token))
    assert named.blank_id == tokenizer.convert_tokens_to_ids("<|finetune_right_pad_id|>")
    for wrong in ("<|pad|>", "a"):
        with pytest.raises(UserError, match="has no special token"):
            ChatPrompt(tokenizer, LLAMA3_2.audio_token, settings=DialogueSettings(blank_token=wrong))
    assert ChatPrompt(TOKENIZERS["qwen3"], QWEN3.audio_token).blank_id == TOKENIZERS["qwen3"].pad_token_id


def test_an_audio_token_must_be_a_special_one() -> None:
    with pytest.raises(UserError, match=r"has no token '<\|audio\|>'.*it has <\|endoftext\|>, <\|im_start\|>"):
        ChatTemplate(TOKENIZERS["qwen2_5"], "<|audio|>")
    with pytest.raises(UserError, match="'a' is no special token, so that a text could hold it"):
        ChatTemplate(TOKENIZERS["qwen2_5"], "a")


def test_turns_that_a_template_cannot_print_are_told() -> None:
    tokenizer = make_family_tokenizer(QWEN2_5)
    tokenizer.chat_template = "{{ raise_exception('no system') if messages[0].role == 'system' else 'x' }}"
    with pytest.raises(UserError, match=r"cannot print turns of \['system', 'user', .*no system.*system_prompt: null"):
        ChatTemplate(tokenizer, QWEN2_5.audio_token, "Be brief.")
    with pytest.raises(UserError, match=r"must alternate.*found \['assistant'\]"):
        template_of(QWEN2_5).render([Turn("assistant", "Hello.")])
