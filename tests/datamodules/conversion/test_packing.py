"""What an example has to be: rules, tokenizers, and no damage that stops the conversion."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from datamodules.conversion.packing import Fault, Packer, PackingRules
from datamodules.formats.corpus_files import CorpusFiles, FolderFiles
from datamodules.shards.shard_index import PackedExample
from tests.datamodules.tiny_corpus import write_wav


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_codes": 0}, "num_codes is 0"),
        ({"max_query_s": float("nan")}, "max_query_s is nan"),
        ({"max_units": 0}, "max_units is 0"),
        ({"max_units_per_character": -1.0}, "max_units_per_character is -1.0"),
        ({"min_units_limit": 0}, "min_units_limit is 0"),
        ({"block_tokens": 0}, "block_tokens is 0"),
        ({"anchors_per_block": 0}, "anchors_per_block is 0"),
        ({"special_tokens": "<|("}, "not a regular expression"),
    ],
)
def test_impossible_rules_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackingRules(**settings)


class Words:
    """A tokenizer of words, whose unknown and special words have the ids 0 and 1; the special one has no name."""

    all_special_ids = [0]
    added_tokens_decoder = {1: AddedToken("[END]", special=True), 3: AddedToken("so", special=False)}

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [{"?": 0, "[END]": 1}.get(word, len(word) + 1) for word in text.split()]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [("[UNKNOWN]", "[END]")[number] for number in ids]


@pytest.mark.parametrize(
    ("reply", "transcript", "num_units", "found"),
    [
        ("One two three.", "Really so?", 16, 3),
        ("Yes. [END]", None, 16, "special_token"),
        ("Yes.", "? what", 16, "special_token"),
        ("one two three four five", None, 15, "text_overflow"),
        ("one two three four five", None, 16, 5),
    ],
)
def test_a_tokenizer_counts_text_tokens_and_knows_its_special_ones(
    tmp_path: Path, reply: str, transcript: str | None, num_units: int, found: int | str
) -> None:
    write_wav(tmp_path / "q.wav", np.full(100, 0.5))
    np.save(tmp_path / "u.npy", np.ones(num_units, dtype=np.int32))
    item = {"id": "one", "speech": "q.wav", "units": "u.npy", "reply": reply, "transcript": transcript}
    packed = Packer(FolderFiles(tmp_path), PackingRules(), Words())("one", item)
    assert found == (packed.num_text_tokens if isinstance(packed, PackedExample) else packed.kind)


CONTENTS = [[3, 1, 2], {"speech_token": np.array([[3, 1]]), "speech_token_len": 2}, {"speech_token": torch.ones(2)}]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), of_units=st.booleans())
def test_no_damage_stops_the_conversion(data: st.DataObject, of_units: bool) -> None:
    query, units = io.BytesIO(), io.BytesIO()
    format_name = data.draw(st.sampled_from(["WAV", "FLAC"]))
    soundfile.write(query, np.linspace(-0.5, 0.5, 300), 16_000, format=format_name, subtype="PCM_16")
    np.save(units, data.draw(st.sampled_from(CONTENTS)), allow_pickle=True)
    files = {"q": bytearray(query.getvalue()), "u": bytearray(units.getvalue())}
    harmed = files["u" if of_units else "q"]
    for place in data.draw(st.lists(st.integers(0, min(len(harmed), 500) - 1), min_size=1, max_size=3)):
        harmed[place] ^= 1 << data.draw(st.integers(0, 7))
    del harmed[data.draw(st.integers(0, len(harmed))) :]

    class Files(CorpusFiles):
        def read(self, name: str) -> bytes:
            return bytes(files[name])

    turns = [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": "Yes."}]
    packed = Packer(Files(), PackingRules())("one", {"speech": "q", "units": "u", "conversations": turns})
    assert isinstance(packed, (Fault, PackedExample))
