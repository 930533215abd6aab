"""Earlier turns come out of loose files and out of shards as they went in, and what is wrong with them is told."""

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch

from datamodules.batch import SpokenBatch, collate
from datamodules.conversion.corpus_check import CorpusCheck
from datamodules.conversion.corpus_converter import CorpusConverter
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from datamodules.shards.sharded_examples import ShardedExamples, open_corpus
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from lightning_modules.dialogue import Turn
from lightning_modules.errors import UserError
from tests.datamodules.tiny_corpus import write_dialogues, write_index, write_wav


@pytest.fixture
def items(tmp_path: Path) -> list[dict]:
    """A corpus of four dialogues under `tmp_path`."""
    return write_dialogues(tmp_path, "train")


def convert(root: Path, index: Path | None = None) -> Path:
    source = root / "spoken_examples/train.json" if index is None else index
    CorpusConverter(str(source), [str(root)], num_workers=0).run(root / "out")
    return root / "out"


def load_loose(root: Path, **settings: object) -> SpokenBatch:
    data = SpokenDialogueDataModule(str(root), validation_index=None, test_index=None, **settings)  # type: ignore[arg-type]
    examples = data.examples("train")
    return collate([examples[place] for place in range(len(examples))])


def load_shards(out: Path, **settings: object) -> SpokenBatch:
    examples = ShardedExamples([open_corpus(str(out))], ("query", "units"), **settings)  # type: ignore[arg-type]
    return collate(examples.__getitems__([(0, row) for row in range(len(examples))])).to_float()


def expected_turns(item: dict) -> tuple[Turn, ...]:
    return tuple(
        Turn("assistant", turn["value"])
        if turn["from"] == "gpt"
        else Turn("user", turn.get("transcript", turn["value"]), is_spoken=turn["value"] == "<speech>")
        for turn in item["conversations"][:-2]
    )


def assert_holds(batch: SpokenBatch, root: Path, items: list[dict]) -> None:
    assert batch.history is not None
    assert batch.history.turns == tuple(expected_turns(item) for item in items)
    files = [path for item in items if isinstance(item["speech"], list) for path in item["speech"][:-1]]
    assert len(files) == 3 and batch.history.speech is not None and batch.history.speech_lengths is not None
    for path, row, length in zip(files, batch.history.speech, batch.history.speech_lengths.tolist(), strict=True):
        samples = soundfile.read(root / path, dtype="float32")[0]
        assert torch.equal(row[:length], torch.from_numpy(samples))
    queries = [item["speech"][-1] if isinstance(item["speech"], list) else item["speech"] for item in items]
    assert batch.query is not None and batch.query_lengths is not None
    for path, row, length in zip(queries, batch.query, batch.query_lengths.tolist(), strict=True):
        assert torch.equal(row[:length], torch.from_numpy(soundfile.read(root / path, dtype="float32")[0]))


def test_turns_come_out_of_loose_files_and_shards_as_they_went_in(tmp_path: Path, items: list[dict]) -> None:
    assert_holds(load_loose(tmp_path), tmp_path, items)
    out = convert(tmp_path)
    assert_holds(load_shards(out), tmp_path, items)
    assert_holds(pickle.loads(pickle.dumps(load_shards(out))), tmp_path, items)
    CorpusCheck(str(out), num_codes=50, num_workers=0).run(tmp_path / "check")


def test_any_tool_finds_the_audio_of_earlier_turns(tmp_path: Path, items: list[dict]) -> None:
    (shard,) = (convert(tmp_path) / "shards").glob("*.tar")
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        keys = [name.split(".")[0] for name in names]
        assert [key for place, key in enumerate(keys) if key not in keys[:place]] == sorted(set(keys)), "consecutive"
        endings = [name.split(".", 1)[1] for name in names if name.startswith(keys[0])]
        assert endings == ["wav", "history0.wav", "history1.wav", "npy", "json"]
        audio = tar.extractfile(f"{keys[0]}.history1.wav")
        assert audio is not None and audio.read() == (tmp_path / items[0]["speech"][1]).read_bytes()


def test_tables_hold_the_audio_of_earlier_turns(tmp_path: Path, items: list[dict]) -> None:
    rows = [
        {
            "id": item["id"],
            "audio": {"bytes": (tmp_path / paths[-1]).read_bytes()},
            "history_audio": [{"bytes": (tmp_path / path).read_bytes()} for path in paths[:-1]],
            "units": np.load(tmp_path / item["units"]).tolist(),
            "conversations": item["conversations"],
        }
        for item in items
        for paths in [item["speech"] if isinstance(item["speech"], list) else [item["speech"]]]
    ]
    (tmp_path / "tables").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "tables/a.parquet")
    assert_holds(load_shards(convert(tmp_path, tmp_path / "tables")), tmp_path, items)


def test_without_the_query_nobody_needs_earlier_turns(tmp_path: Path, items: list[dict]) -> None:
    (tmp_path / items[0]["speech"][0]).unlink()
    assert load_loose(tmp_path, fields=["units"]).history is None
    with pytest.raises(FileNotFoundError, match=r"train_0-0\.wav is missing, and so are the files of 0 other items"):
        load_loose(tmp_path)


def test_spoken_turns_may_be_given_as_text(tmp_path: Path, items: list[dict]) -> None:
    out = convert(tmp_path)
    written = [[Turn(turn.role, turn.text) for turn in expected_turns(item)] for item in items]
    for batch in (load_loose(tmp_path, written_history=True), load_shards(out, written_history=True)):
        assert batch.history is not None and batch.history.speech is None
        assert [list(turns) for turns in batch.history.turns] == written
    del items[1]["conversations"][0]["transcript"]
    write_index(tmp_path, "train", items)
    with pytest.raises(UserError, match="item 'train_1': earlier turn 1 is speech without a transcript"):
        load_loose(tmp_path, written_history=True)


def test_an_augmentation_changes_all_that_a_dialogue_lets_hear(tmp_path: Path, items: list[dict]) -> None:
    out = convert(tmp_path)
    plain, changed = load_shards(out), load_shards(out, augment=lambda samples, epoch, number: -samples)
    assert plain.query is not None and changed.query is not None and torch.equal(plain.query, -changed.query)
    assert plain.history is not None and changed.history is not None
    assert plain.history.speech is not None and torch.equal(plain.history.speech, -changed.history.speech)


def test_what_is_wrong_with_an_earlier_turn_is_a_fault(tmp_path: Path, items: list[dict]) -> None:
    (tmp_path / items[0]["speech"][0]).unlink()
    write_wav(tmp_path / items[1]["speech"][0], np.zeros(400))
    items[2]["conversations"][1]["value"] = "Yes.<|im_end|>"
    items[3]["speech"] = [items[3]["speech"]] * 2
    write_index(tmp_path, "train", items)
    with pytest.raises(UserError, match="every item has a fault"):
        convert(tmp_path)
    faults = json.loads((tmp_path / "out/report.json").read_text())["faults"]
    kinds = ["missing_query", "silent_query", "special_token", "layout"]
    assert [(fault["id"], fault["kind"]) for fault in faults] == [
        (f"train_{place}", kind) for place, kind in enumerate(kinds)
    ]
    assert items[0]["speech"][0] in faults[0]["problem"] and items[1]["speech"][0] in faults[1]["problem"]


def test_damage_to_an_earlier_turn_is_found_and_left_out(tmp_path: Path, items: list[dict]) -> None:
    out = convert(tmp_path)
    (shard,) = (out / "shards").glob("*.tar")
    content, audio = bytearray(shard.read_bytes()), (tmp_path / items[1]["speech"][0]).read_bytes()
    content[content.index(audio) + 100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="1 of 4 examples are damaged, the first train_1: .*earlier turn 1 is damaged"):
        CorpusCheck(str(out), num_codes=50, num_workers=0).run(tmp_path / "check")
    data = ShardedDialogueDataModule({"one": ShardedSet(str(out))}, fields=("query", "units"), max_tokens=200)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sorted(name for batch in batches for name in batch.ids) == ["train_0", "train_2", "train_3"]
    assert [problem.split(",")[0] for batch in batches for problem in batch.skipped] == [
        "train_1: the audio of its earlier turn 1 is damaged"
    ]
