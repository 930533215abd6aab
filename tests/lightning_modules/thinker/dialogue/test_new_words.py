"""New words as tokens: one each, wherever they stand, and nothing else changes."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lightning_modules.errors import UserError
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.dialogue.new_words import add_words, with_new_words
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.thinker.tiny import make_language_model, make_speech_encoder, make_tokenizer

WORDS = ["Ada", "Adam", "O'Neil"]
BASE = make_tokenizer()
EXTENDED = add_words(BASE, WORDS)
NEW_IDS = EXTENDED.convert_tokens_to_ids(WORDS)


def encode(text: str) -> list[int]:
    return EXTENDED(text, add_special_tokens=False)["input_ids"]


def make_thinker() -> Thinker:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adaptor = Adaptor(input_size=32, output_size=32, hidden_size=16)
        return Thinker(make_speech_encoder(), adaptor, make_language_model(), BASE).eval()


def test_words_get_the_ids_behind_all_others_and_the_given_tokenizer_keeps_its_own() -> None:
    assert NEW_IDS == [len(BASE), len(BASE) + 1, len(BASE) + 2] and len(EXTENDED) == len(BASE) + 3
    assert "Ada" not in BASE.get_vocab()


@given(st.lists(st.sampled_from([*WORDS, "Paris", "the", "Adamant", "yes", "7"]), min_size=1), st.sampled_from(",.;!"))
def test_texts_survive_and_each_word_is_one_token(words: list[str], mark: str) -> None:
    text = f"{mark} ".join(words[:2]) + "".join(f" {word}" for word in words[2:]) + "."
    ids = encode(text)
    assert EXTENDED.decode(ids) == text
    assert [one for one in ids if one in NEW_IDS] == [NEW_IDS[WORDS.index(word)] for word in words if word in WORDS]


@given(st.lists(st.sampled_from(["Paris", "the", "Adamant", "McAda", "yes", "7"]), min_size=1))
def test_texts_without_them_have_the_tokens_that_they_had(words: list[str]) -> None:
    text = " ".join(words)
    assert encode(text) == BASE(text, add_special_tokens=False)["input_ids"]


def test_the_tokens_are_the_same_at_the_beginning_and_inside() -> None:
    assert encode("Ada")[0] == encode("I told Ada")[-1] == NEW_IDS[0]


def test_transformers_alone_reads_it_back(tmp_path: Path) -> None:
    EXTENDED.save_pretrained(tmp_path)
    reread = AutoTokenizer.from_pretrained(tmp_path)
    text = "Ada, Adam and O'Neil Ada."
    assert reread(text, add_special_tokens=False)["input_ids"] == encode(text)
    assert reread.decode(encode(text)) == text


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["New York"], "'New York' is no single word"),
        ([""], "is no single word"),
        (["Ada", "Ada"], "'Ada' occurs twice"),
        (["e"], "'e' is a token of"),
    ],
)
def test_words_that_cannot_be_tokens_are_refused(words: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        add_words(BASE, words)


def test_a_thinker_reads_and_writes_new_words_and_other_texts_as_before() -> None:
    thinker, query, lengths = make_thinker(), torch.randn(1, 16000), torch.tensor([16000])
    before = thinker.states(query, lengths, ["Yes."]).hidden
    assert with_new_words(thinker, WORDS) is thinker
    assert thinker.states(query, lengths, ["Yes."]).hidden.equal(before)
    assert thinker.states(query, lengths, ["Ada"]).token_ids.tolist() == [[NEW_IDS[0]]]
    assert thinker.decode(thinker.prompt.encode_replies(["Yes Ada."])[0]) == "Yes Ada."
    thinker.add_words(["Zoe"])
    assert thinker.prompt.encode_replies(["Ada Zoe"]) == [[NEW_IDS[0], len(EXTENDED)]]


def test_more_words_than_the_language_model_has_embeddings_for_are_refused() -> None:
    room = 304 - len(BASE)
    words = [f"Word{number}x" for number in range(room + 1)]
    with_new_words(make_thinker(), words[:-1])
    with pytest.raises(UserError, match="embeddings for 304.*add fewer words"):
        with_new_words(make_thinker(), words)
