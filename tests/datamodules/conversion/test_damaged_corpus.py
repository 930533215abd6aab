"""A corpus with one per cent of damage of every kind converts, is checked and trains, and every fault is named."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules.conversion.corpus_check import CorpusCheck
from datamodules.conversion.corpus_converter import CorpusConverter
from datamodules.conversion.packing import PackingRules
from datamodules.formats.atomic_files import write_json
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from datamodules.shards.shard_index import ShardIndex
from lightning_modules.errors import UserError
from lightning_modules.token_format import TokenFormat
from tests.datamodules.tiny_corpus import write_split, write_wav

NUM_EXAMPLES = 800


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Write a corpus of loose files; return it with the kinds of the faults planted in it by id."""
    root = tmp_path_factory.mktemp("loose")
    items = write_split(root, "train", NUM_EXAMPLES)
    speech, units = ([root / item[key] for item in items] for key in ("speech", "units"))
    units[100].unlink()
    np.save(units[200], np.array([3, 1000]))
    soundfile.write(speech[300], np.full(800, np.nan), 16_000, subtype="FLOAT")
    write_wav(speech[400], np.zeros(0))
    flip_a_bit(speech[500], 0)  # not RIFF any more
    flip_a_bit(units[600], 1)
    kinds = {100: "missing_units", 200: "units_outside_codebook", 300: "broken_query", 400: "silent_query"}
    kinds |= {500: "broken_query", 600: "broken_units"}
    return root, {f"train_{number}": kind for number, kind in kinds.items()}


def convert(root: Path, files: Path, out: Path) -> tuple[ShardIndex, dict[str, str]]:
    index = str(root / "spoken_examples/train.json")
    rules = PackingRules(num_codes=1000)
    CorpusConverter(index, [str(files)], rules, num_workers=0, examples_per_group=90).run(out)
    faults = json.loads((out / "report.json").read_text())["faults"]
    return ShardIndex.load(out / "index.npz"), {fault["id"]: fault["kind"] for fault in faults}


def test_planted_faults_are_listed_and_what_is_damaged_later_is_found_and_left_out(
    loose: tuple[Path, dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, planted = loose
    index, found = convert(root, root, tmp_path)
    assert found == planted
    assert len(index) == NUM_EXAMPLES - len(planted)
    assert CorpusCheck(str(tmp_path), num_codes=1000, num_workers=0).run(tmp_path / "whole")["num_examples"] == 794

    with pytest.raises(UserError, match="has no codec.json; give num_codes"):
        CorpusCheck(str(tmp_path), num_workers=0).run(tmp_path / "whole")

    # Later, a bit flips in each part of three examples, and a shard loses its end.
    shards = [tmp_path / "shards" / name for name in index.shards.tolist()]
    for part, row in enumerate((10, 110, 210)):
        flip_a_bit(shards[index.shard_of[row]], int(index.offsets[row, part]) + int(index.sizes[row, part]) // 2)
    last = np.flatnonzero(index.shard_of == len(shards) - 1)
    shards[-1].write_bytes(shards[-1].read_bytes()[: int(index.offsets[last[-2], 1])])
    write_json(tmp_path / "codec.json", TokenFormat("c", 1000, 25, 16_000).as_record())
    with pytest.raises(UserError, match="num_codes is 500, but the codec of .* has 1000 codes; set it to 1000"):
        CorpusCheck(str(tmp_path), num_codes=500, num_workers=0).run(tmp_path / "check")
    damaged = {str(index.ids[row]) for row in (10, 110, 210, last[-2], last[-1])}
    with pytest.raises(ValueError, match="5 of 794 examples are damaged"):
        CorpusCheck(str(tmp_path), num_workers=0).run(tmp_path / "check")
    assert {name for name, _ in json.loads((tmp_path / "check/damages.json").read_text())} == damaged

    data = ShardedDialogueDataModule({"train": ShardedSet(str(tmp_path))}, max_tokens=200)
    data.setup("fit")
    batches = [data.on_before_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    names = [name for batch in batches for name in batch.ids]
    assert sorted(names) == sorted(set(index.ids.tolist()) - damaged)
    assert data.num_skipped == len(damaged)
    assert all(any(f"{name}:" in message for message in caplog.messages) for name in damaged)


def test_of_a_truncated_archive_the_beginning_is_kept_and_the_rest_listed(
    loose: tuple[Path, dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, planted = loose
    archive = tmp_path / "corpus.tar"
    items = json.loads((root / "spoken_examples/train.json").read_text())
    with tarfile.open(archive, "w") as tar:
        for item in items:
            for path in (item["speech"], item["units"]):
                if (root / path).exists():
                    tar.add(root / path, arcname=path)
    with tarfile.open(archive) as tar:
        broken = tar.getmember(items[790]["speech"])
    archive.write_bytes(archive.read_bytes()[: broken.offset_data + 100])
    index, found = convert(root, archive, tmp_path / "out")
    lost = {item["id"]: "missing_query" for item in items[791:]}
    assert found == {**planted, items[790]["id"]: "broken_query", **lost}
    assert len(index) == NUM_EXAMPLES - len(found)
    assert "is cut off" in caplog.text
