"""The reader takes what the released sets hold, and says what is wrong with anything else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.formats.released_layout import ReleasedLayout, read_audio
from tests.datamodules.tiny_corpus import write_index, write_split, write_wav

ALL = ("query", "units", "reply", "transcript")


def released_item(name: str) -> dict:
    """Return an item with the keys of the released sets and no others."""
    return {
        "id": name,
        "speech": f"VoiceAssistant-430K-vocalnet/audios/{name}.wav",
        "conversations": [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": "It depends."}],
        "units": f"VoiceAssistant-430K-vocalnet/cosyvoice2_tokens/{name}.npy",
    }


def test_released_set_is_read_as_it_is(tmp_path: Path) -> None:
    item = released_item("19090")
    folder = tmp_path / "VoiceAssistant-430K-vocalnet"
    (folder / "cosyvoice2_tokens").mkdir(parents=True)
    write_wav(tmp_path / item["speech"], np.ones((2205, 2)) * [0.25, 0.75], rate_hz=22_050)
    np.save(tmp_path / item["units"], {"speech_token": np.array([[5, 6560]]), "speech_token_len": 2}, allow_pickle=True)
    index = folder / "VoiceAssistant-430K.json"
    index.write_text(json.dumps([item]))
    example = ReleasedLayout(index, tmp_path, num_codes=6561)[0]
    assert (example.id, example.reply_text) == ("19090", "It depends.")
    assert example.units.tolist() == [5, 6560]
    assert example.query.shape == (1600,)
    assert torch.allclose(example.query[400:1200], torch.tensor(0.5), atol=1e-2)
    assert example.reply is example.transcript is None


@pytest.mark.parametrize("fields", [(), ("query",), ("units",), ("reply", "transcript"), ALL])
def test_only_the_fields_asked_for_are_read(tmp_path: Path, fields: tuple[str, ...]) -> None:
    write_split(tmp_path, "train", 2)
    example = ReleasedLayout(tmp_path / "spoken_examples/train.json", tmp_path, fields=fields)[1]
    assert {field for field in ALL if getattr(example, field) is not None} == set(fields)


def test_tokens_may_lie_elsewhere(tmp_path: Path) -> None:
    item = write_split(tmp_path / "corpus", "train", 1)[0]
    elsewhere = tmp_path / "tokens" / item["units"]
    elsewhere.parent.mkdir(parents=True)
    (tmp_path / "corpus" / item["units"]).rename(elsewhere)
    index = tmp_path / "corpus/spoken_examples/train.json"
    layout = ReleasedLayout(index, tmp_path / "corpus", tmp_path / "tokens", fields=("units",))
    assert layout[0].units.tolist() == np.load(elsewhere).tolist()
    with pytest.raises(FileNotFoundError, match="set units_root"):
        ReleasedLayout(index, tmp_path / "corpus", fields=("units",)).load()


def test_sizes_grow_with_length(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 9)
    for field in ("units", "reply", "query"):
        layout = ReleasedLayout(tmp_path / "spoken_examples/train.json", tmp_path, fields=(field,))
        lengths = [getattr(layout[position], field).numel() for position in range(len(layout))]
        assert np.argsort(layout.sizes(), kind="stable").tolist() == np.argsort(lengths, kind="stable").tolist()


def missing_key(item: dict) -> None:
    del item["units"]


def empty_reply(item: dict) -> None:
    item["conversations"][1]["value"] = "  "


def two_turns(item: dict) -> None:
    item["conversations"] *= 2


def wrong_type(item: dict) -> None:
    item["speech"] = 7


def same_id(item: dict) -> None:
    item["id"] = "train_0"


def missing_file(item: dict) -> None:
    item["speech"] = "spoken_examples/audios/absent.wav"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (missing_key, ValueError, r"'train_1'.*no 'units' key.*leave 'units' out of fields"),
        (empty_reply, ValueError, r"'train_1'.*empty"),
        (two_turns, ValueError, r"'train_1'.*'speech' names 1 files for 1 earlier turns"),
        (wrong_type, ValueError, r"'train_1'.*'speech' must be a string"),
        (same_id, ValueError, r"'train_0'.*2 times"),
        (missing_file, FileNotFoundError, r"'train_1'.*absent\.wav is missing"),
    ],
)
def test_damaged_index_names_the_item_and_the_fix(tmp_path: Path, damage, error: type, message: str) -> None:
    items = write_split(tmp_path, "train", 3)
    damage(items[1])
    index = write_index(tmp_path, "train", items)
    with pytest.raises(error, match=message) as caught:
        ReleasedLayout(index, tmp_path).load()
    assert str(index) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[{", '["a"]'])
def test_what_is_not_an_index_is_refused(tmp_path: Path, text: str) -> None:
    index = tmp_path / "train.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=r"train\.json"):
        ReleasedLayout(index, tmp_path).load()


def test_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no such index"):
        ReleasedLayout(tmp_path / "absent.json", tmp_path).load()


def test_unknown_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown \['speech'\]"):
        ReleasedLayout(tmp_path / "train.json", tmp_path, fields=("speech",))


def test_damaged_file_names_the_item_the_file_and_the_fix(tmp_path: Path) -> None:
    items = write_split(tmp_path, "train", 2)
    (tmp_path / items[1]["speech"]).write_bytes(b"no audio")
    layout = ReleasedLayout(tmp_path / "spoken_examples/train.json", tmp_path, fields=("query",))
    with pytest.raises(ValueError, match=r"'train_1'.*train_1\.wav: not readable as audio.*make it again"):
        layout[1]


def test_tokens_outside_of_the_codebook_name_the_item(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 1, num_codes=50)
    layout = ReleasedLayout(tmp_path / "spoken_examples/train.json", tmp_path, fields=("units",), num_codes=2)
    with pytest.raises(ValueError, match=r"'train_0'.*outside of the codebook of 2 codes"):
        layout[0]


def test_empty_audio_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "empty.wav", np.zeros(0))
    with pytest.raises(ValueError, match="holds no samples"):
        read_audio(tmp_path / "empty.wav")
