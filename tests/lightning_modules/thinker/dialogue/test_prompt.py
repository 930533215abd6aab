"""The chat prompt puts the audio into the user's turn, and encoded replies decode to themselves."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lightning_modules.thinker.dialogue.prompt import ChatPrompt
from tests.lightning_modules.thinker.tiny import REPLIES, make_tokenizer


def test_the_audio_stands_in_the_users_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = ChatPrompt(tokenizer)
    assert tokenizer.decode(prompt.prefix_ids) == "<|im_start|>user\n"
    assert tokenizer.decode(prompt.suffix_ids) == "<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.end_of_turn_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_system_prompt_comes_first(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = ChatPrompt(tokenizer, system_prompt="Answer in one sentence.")
    start = "<|im_start|>system\nAnswer in one sentence.<|im_end|>\n<|im_start|>user\n"
    assert tokenizer.decode(prompt.prefix_ids) == start


def test_a_saved_tokenizer_gives_the_same_prompt(tokenizer: PreTrainedTokenizerFast, tokenizer_path: Path) -> None:
    saved, built = ChatPrompt(tokenizer_path), ChatPrompt(tokenizer)
    assert (saved.prefix_ids, saved.suffix_ids) == (built.prefix_ids, built.suffix_ids)
    assert saved.encode_replies(REPLIES) == built.encode_replies(REPLIES)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_encoded_replies_decode_to_themselves(reply: str) -> None:
    prompt = ChatPrompt(make_tokenizer_once())
    assert prompt.decode(prompt.encode_replies([reply])[0]) == reply


def test_bad_replies_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = ChatPrompt(tokenizer)
    with pytest.raises(ValueError, match="reply '' is empty"):
        prompt.encode_replies(["Yes.", ""])
    with pytest.raises(ValueError, match=r"reply 'Yes\.<\|im_end\|>' has special or unknown tokens"):
        prompt.encode_replies(["Yes.<|im_end|>"])


def test_unfit_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has no token '<\|audio\|>'"):
        ChatPrompt(make_tokenizer(special_tokens=("<|im_start|>",)))
    without_template = make_tokenizer()
    without_template.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        ChatPrompt(without_template)
    twice = make_tokenizer()
    twice.chat_template = "{{ messages[0]['content'] }} {{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="into 2 tokens"):
        ChatPrompt(twice)
    without_end = make_tokenizer()
    without_end.eos_token = None
    without_end.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ValueError, match=r"behind a reply, and it has no eos_token"):
        ChatPrompt(without_end)


def test_a_wrong_path_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="tokenizer: there is no directory '/no/such/folder'"):
        ChatPrompt("/no/such/folder")


_MADE: list[PreTrainedTokenizerFast] = []


def make_tokenizer_once() -> PreTrainedTokenizerFast:
    """Make the tokenizer at the first call."""
    if not _MADE:
        _MADE.append(make_tokenizer())
    return _MADE[0]
