"""Frequent words are one token each, and any text survives."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datamodules.synthetic.dialogues import make_dialogues
from datamodules.synthetic.text_tokenizer import TextTokenizerTrainer, train_tokenizer
from tests.datamodules.tiny_corpus import write_index

REPLIES = [dialogue.reply for dialogue in make_dialogues(3000, seed=0)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(REPLIES, vocab_size=2048, min_frequency=5)


@given(text=st.text(alphabet=[chr(code) for code in range(128)]))
def test_ascii_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text())
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_of_replies_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for reply in REPLIES[:200]:
        punctuation = sum(reply.count(mark) for mark in ".,")
        assert len(tokenizer.encode(reply)) <= len(reply.split()) + punctuation


def test_spelled_letters_carry_their_commas(tokenizer: PreTrainedTokenizerFast) -> None:
    spelled = tokenizer.encode("I will tell Tom it is H, O, M, E.")
    assert [tokenizer.decode(token) for token in spelled[6:]] == [" H,", " O,", " M,", " E", "."]


def test_unseen_words_fall_back_to_pieces(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer.encode(" Xylophones")) > 1
    assert len(tokenizer.encode(string.ascii_lowercase)) <= len(string.ascii_lowercase)


def test_saved_tokenizer_knows_turns_and_audio(tmp_path: Path) -> None:
    items = [
        {
            "id": str(index),
            "conversations": [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": reply}],
        }
        for index, reply in enumerate(REPLIES)
    ]
    write_index(tmp_path, "train", items)
    metrics = TextTokenizerTrainer(str(tmp_path)).run(tmp_path / "run")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    assert metrics["vocab_size"] == len(loaded)
    assert metrics["single_token_share"] > 0.9
    assert "text_tokens_per_s_max" not in metrics
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    messages = [{"role": "user", "content": "<|audio|>"}]
    prompt = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\n<|audio|><|im_end|>\n<|im_start|>assistant\n"
    for special in ("<|im_start|>", "<|im_end|>", "<|audio|>", "<|endoftext|>"):
        assert len(loaded.encode(special)) == 1


def test_vocabulary_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 100"):
        TextTokenizerTrainer("nowhere", vocab_size=100)
