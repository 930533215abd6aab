"""Conversion keeps what is good, names what is not, resumes after a kill, and any tool can read its shards."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch

from datamodules.batch import from_pcm
from datamodules.conversion.corpus_converter import CorpusConverter
from datamodules.conversion.packing import PackingRules
from datamodules.shards.shard_files import DamagedExampleError, ShardFiles, decode_query, decode_text, decode_units
from datamodules.shards.shard_index import ShardIndex
from tests.datamodules.tiny_corpus import write_index, write_split, write_wav

SET = "spoken_examples"


def convert(tmp_path: Path, corpus: Path, name: str = "out", **settings: object) -> tuple[ShardIndex, dict, Path]:
    out = tmp_path / name
    defaults = {"index": str(corpus / SET / "train.json"), "files": [str(corpus)], "num_workers": 0}
    CorpusConverter(**{**defaults, **settings}).run(out)  # type: ignore[arg-type]
    return ShardIndex.load(out / "index.npz"), json.loads((out / "report.json").read_text()), out


def contents(out: Path) -> dict[str, tuple[bytes, list[int], str]]:
    """Return what every example holds, read through the index."""
    index = ShardIndex.load(out / "index.npz")
    files = ShardFiles(str(out / "shards"), index)
    found = {}
    for row, name in enumerate(index.ids.tolist()):
        parts = files.read(row)
        found[name] = (parts["query"], decode_units(parts["units"]).tolist(), decode_text(parts["text"])["reply"])
    return found


def test_every_example_comes_back_byte_for_byte(tmp_path: Path) -> None:
    items = write_split(tmp_path / "corpus", "train", 7)
    index, report, out = convert(tmp_path, tmp_path / "corpus", examples_per_group=3)
    assert report["num_faults"] == 0
    found = contents(out)
    for item in items:
        query, units, reply = found[item["id"]]
        assert query == (tmp_path / "corpus" / item["speech"]).read_bytes()
        assert units == np.load(tmp_path / "corpus" / item["units"]).tolist()
        assert reply == item["conversations"][1]["value"]
    assert index.ids.tolist() == [item["id"] for item in items]
    assert index.num_units.tolist() == [len(found[name][1]) for name in index.ids.tolist()]
    assert len(index.shards) == 3


def test_a_table_says_what_it_did(tmp_path: Path) -> None:
    items = write_split(tmp_path / "corpus", "train", 7)
    (tmp_path / "corpus" / items[3]["speech"]).unlink()
    index, _, out = convert(tmp_path, tmp_path / "corpus", examples_per_group=3)
    rows = dict(line.strip("| ").split(" | ") for line in (out / "results.md").read_text().splitlines()[2:])
    assert (rows["examples"], rows["shards"], rows["processes"]) == ("6", "3", "0")
    assert rows["speech tokens"] == str(index.num_units.sum())
    assert rows["items left out"] == "1 (1 missing_query)"
    assert rows["items converted in the last run"].startswith("7 in ") and float(rows["items per second"]) > 0


def test_any_tool_can_read_the_shards(tmp_path: Path) -> None:
    items = write_split(tmp_path / "corpus", "train", 3)
    _, _, out = convert(tmp_path, tmp_path / "corpus")
    (shard,) = (out / "shards").glob("*.tar")
    with tarfile.open(shard) as archive:
        names = archive.getnames()
        first = json.loads(archive.extractfile(names[2]).read())  # type: ignore[union-attr]
    assert [name.split(".")[1] for name in names] == ["wav", "npy", "json"] * 3
    assert len({name.split(".")[0] for name in names}) == 3
    assert first["id"] == items[0]["id"]


def test_a_shard_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    write_split(tmp_path / "corpus", "train", 7)
    _, _, out = convert(tmp_path, tmp_path / "corpus", examples_per_group=3)
    expected, shards = contents(out), sorted((out / "shards").glob("*.tar"))
    written = [shard.stat().st_mtime_ns for shard in shards]
    shards[1].unlink()
    convert(tmp_path, tmp_path / "corpus", examples_per_group=3)
    assert contents(out) == expected
    assert [shard.stat().st_mtime_ns == before for shard, before in zip(shards, written, strict=True)] == [
        True, False, True,
    ]  # fmt: skip


def test_shards_are_closed_when_they_are_full(tmp_path: Path) -> None:
    write_split(tmp_path / "corpus", "train", 6)
    index, _, out = convert(tmp_path, tmp_path / "corpus", max_shard_mb=1e-6)
    assert len(index.shards) == 6
    assert len(contents(out)) == 6


def test_flac_holds_the_same_samples(tmp_path: Path) -> None:
    items = write_split(tmp_path / "corpus", "train", 2)
    index, _, out = convert(tmp_path, tmp_path / "corpus", rules=PackingRules(to_flac=True))
    content = ShardFiles(str(out / "shards"), index).read(0, ["query"])["query"]
    assert content[:4] == b"fLaC"
    samples, rate = decode_query(content)
    expected, expected_rate = soundfile.read(tmp_path / "corpus" / items[0]["speech"], dtype="float32")
    assert rate == expected_rate
    assert torch.equal(from_pcm(samples), torch.from_numpy(expected))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def nan_wav(path: Path) -> None:
    soundfile.write(path, np.full(800, np.nan), 16_000, subtype="FLOAT")


def write_units(path: Path, count: int) -> None:
    np.save(path, np.ones(count, dtype=np.int32))


def say(item: dict, reply: str) -> None:
    item["conversations"][1]["value"] = reply


FAULTS: dict[str, tuple[str, Callable[[dict, Path], object]]] = {
    "missing query": ("missing_query", lambda item, root: (root / item["speech"]).unlink()),
    "truncated query": (
        "broken_query", lambda item, root: cut_off(root / item["speech"])
    ),
    "no audio": ("broken_query", lambda item, root: (root / item["speech"]).write_bytes(b"not audio")),
    "NaN": ("broken_query", lambda item, root: nan_wav(root / item["speech"])),
    "0 s": ("silent_query", lambda item, root: write_wav(root / item["speech"], np.zeros(0))),
    "silence": ("silent_query", lambda item, root: write_wav(root / item["speech"], np.zeros(800))),
    "missing units": ("missing_units", lambda item, root: (root / item["units"]).unlink()),
    "wrong type": ("broken_units", lambda item, root: np.save(root / item["units"], np.ones(3))),
    "outside": ("units_outside_codebook", lambda item, root: np.save(root / item["units"], np.array([1, 1000]))),
    "no units": ("broken_units", lambda item, root: np.save(root / item["units"], np.zeros(0, dtype=int))),
    "empty reply": ("empty_reply", lambda item, root: item["conversations"][1].update(value=" ")),
    "three turns": ("layout", lambda item, root: item["conversations"].append({"from": "gpt", "value": "More."})),
    "no path": ("layout", lambda item, root: item.pop("speech")),
    "special token": ("special_token", lambda item, root: say(item, "It rings.<|im_end|>")),
    "special token asked": ("special_token", lambda item, root: item.update(transcript="<|audio|> What?")),
    "absolute path": ("path_outside_corpus", lambda item, root: item.update(speech=str(root / item["speech"]))),
    "path that leads out": ("path_outside_corpus", lambda item, root: item.update(units="../corpus/" + item["units"])),
    "200,000 tokens": ("long_reply", lambda item, root: write_units(root / item["units"], 200_000)),
    "2,000 tokens, short text": ("units_do_not_fit_text", lambda item, root: write_units(root / item["units"], 2000)),
    "a table that is not there": ("layout", lambda item, root: item.update(table="x") or item.pop("units")),
    "half a surrogate pair": ("layout", lambda item, root: say(item, "\ud800")),
}  # fmt: skip


@pytest.mark.parametrize("archive", [None, "tar", "zip"])
def test_each_fault_is_listed_by_id_and_kind_and_the_rest_is_kept(tmp_path: Path, archive: str | None) -> None:
    corpus = tmp_path / "corpus"
    items = write_split(corpus, "train", len(FAULTS) + 3)
    for item, (_, harm) in zip(items, FAULTS.values(), strict=False):
        harm(item, corpus)
    items += [{**items[-1]}, {"speech": "nameless"}]
    write_index(corpus, "train", items)
    files = [str(corpus)] if archive is None else [str(tmp_path / f"files.{archive}")]
    if archive is not None:
        {"tar": pack_tar, "zip": pack_zip}[archive](corpus, Path(files[0]))
    rules = PackingRules(num_codes=1000)
    index, report, out = convert(tmp_path, corpus, rules=rules, files=files, examples_per_group=4)
    expected = [(item["id"], kind) for item, (kind, _) in zip(items, FAULTS.values(), strict=False)]
    expected += [(items[-2]["id"], "duplicate_id"), (f"entry {len(items) - 1}", "layout")]
    assert sorted((fault["id"], fault["kind"]) for fault in report["faults"]) == sorted(expected)
    assert all(fault["problem"] for fault in report["faults"])
    assert sum(report["kinds"].values()) == report["num_faults"] == len(expected)
    assert index.ids.tolist() == [item["id"] for item in items[len(FAULTS) : len(FAULTS) + 3]]
    assert len(contents(out)) == 3


def test_what_the_rules_allow_is_kept(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    items = write_split(corpus, "train", 4)
    say(items[0], "It rings.<|im_end|>")
    write_units(corpus / items[1]["units"], 250)  # 10 s for any text
    write_units(corpus / items[2]["units"], 400)
    say(items[2], "Two thousand twenty.")  # 20 characters
    write_units(corpus / items[3]["units"], 401)
    say(items[3], "Two thousand twenty.")
    write_index(corpus, "train", items)
    index, report, _ = convert(tmp_path, corpus, rules=PackingRules(special_tokens=None))
    assert [(fault["id"], fault["kind"]) for fault in report["faults"]] == [(items[3]["id"], "units_do_not_fit_text")]
    assert index.num_units.tolist()[1:] == [250, 400]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": -1}, "num_workers is -1"),
        ({"examples_per_group": 0}, "examples_per_group is 0"),
        ({"max_shard_mb": 0.0}, "max_shard_mb is 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorpusConverter("nowhere", **settings)


def test_a_line_that_is_not_json_is_a_fault(tmp_path: Path) -> None:
    items = write_split(tmp_path / "corpus", "train", 3)
    lines = tmp_path / "train.jsonl"
    lines.write_text("\n".join([json.dumps(items[0]), json.dumps(items[1])[:-9], json.dumps(items[2])]))
    index, report, _ = convert(tmp_path, tmp_path / "corpus", index=str(lines))
    assert index.ids.tolist() == [items[0]["id"], items[2]["id"]]
    (fault,) = report["faults"]
    assert (fault["id"], fault["kind"]) == ("entry 1", "layout") and "train_1" in fault["problem"]


def test_damage_inside_an_archive_or_a_table_is_a_fault(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    items = write_split(corpus, "train", 4)
    archive = tmp_path / "files.zip"
    pack_zip(corpus, archive)
    with zipfile.ZipFile(archive) as opened:
        place = opened.getinfo(items[1]["speech"]).header_offset + 200
    flip(archive, place)
    _, report, _ = convert(tmp_path, corpus, files=[str(archive)])
    assert [(fault["id"], fault["kind"]) for fault in report["faults"]] == [(items[1]["id"], "broken_query")]

    write_tables(corpus, items, tmp_path / "tables")
    (table,) = (tmp_path / "tables").rglob("*.parquet")
    file = pyarrow.parquet.ParquetFile(table)
    pages = [file.metadata.row_group(1).column(column) for column in range(file.metadata.num_columns)]
    for place in [page.data_page_offset for page in pages if page.path_in_schema == "audio.bytes"]:
        flip(table, place)
    index, report, _ = convert(tmp_path, corpus, "tables", index=str(tmp_path / "tables"), files=[])
    assert {fault["id"]: fault["kind"] for fault in report["faults"]} == dict.fromkeys(
        [items[2]["id"], items[3]["id"]], "broken_table"
    )
    assert index.ids.tolist() == [items[0]["id"], items[1]["id"]]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def test_strict_stops_at_a_fault(tmp_path: Path) -> None:
    items = write_split(tmp_path / "corpus", "train", 3)
    (tmp_path / "corpus" / items[1]["speech"]).unlink()
    with pytest.raises(ValueError, match=f"{items[1]['id']}: .*missing"):
        convert(tmp_path, tmp_path / "corpus", strict=True)


def test_nothing_good_is_an_error_that_points_to_the_report(tmp_path: Path) -> None:
    items = write_split(tmp_path / "corpus", "train", 1)
    (tmp_path / "corpus" / items[0]["speech"]).unlink()
    with pytest.raises(ValueError, match="report.json"):
        convert(tmp_path, tmp_path / "corpus")


def pack_tar(corpus: Path, path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(corpus, arcname=".")


def pack_zip(corpus: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(corpus.rglob("*")):
            archive.write(file, file.relative_to(corpus))


def write_tables(corpus: Path, items: list[dict], folder: Path) -> None:
    rows = [
        {
            "id": item["id"],
            "audio": {"bytes": (corpus / item["speech"]).read_bytes(), "path": None},
            "units": np.load(corpus / item["units"]).tolist(),
            "reply": item["conversations"][1]["value"],
        }
        for item in items
    ]
    (folder / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "data/train-00000.parquet", row_group_size=2)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "jsonl", "parquet"])
def test_all_sources_give_the_same_examples(tmp_path: Path, kind: str) -> None:
    corpus = tmp_path / "corpus"
    items = write_split(corpus, "train", 5)
    expected = contents(convert(tmp_path, corpus)[2])
    settings: dict[str, object] = {}
    if kind in ("tar", "zip"):
        archive = tmp_path / f"files.{kind}"
        {"tar": pack_tar, "zip": pack_zip}[kind](corpus, archive)
        settings = {"files": [str(archive)]}
    elif kind == "jsonl":
        lines = tmp_path / "train.jsonl"
        lines.write_text("\n".join(json.dumps(item) for item in items) + "\n")
        settings = {"index": str(lines)}
    elif kind == "parquet":
        write_tables(corpus, items, tmp_path / "tables")
        settings = {"index": str(tmp_path / "tables"), "files": []}
    assert contents(convert(tmp_path, corpus, "again", **settings)[2]) == expected


def test_changed_bytes_are_found(tmp_path: Path) -> None:
    write_split(tmp_path / "corpus", "train", 2)
    index, _, out = convert(tmp_path, tmp_path / "corpus")
    (shard,) = (out / "shards").glob("*.tar")
    content = bytearray(shard.read_bytes())
    content[int(index.offsets[1, 1]) + 90] ^= 1
    shard.write_bytes(content)
    files = ShardFiles(str(out / "shards"), index)
    assert set(files.read(0)) == {"query", "units", "text", "whole"}
    with pytest.raises(DamagedExampleError, match=f"{index.ids[1]}: its units"):
        files.read(1)
    assert files.read(1, ["query"])


SCRIPT = """
import sys
from pathlib import Path
from datamodules.conversion.corpus_converter import CorpusConverter
if __name__ == "__main__":
    index, files, out, workers = sys.argv[1:]
    CorpusConverter(index, [files], num_workers=int(workers), examples_per_group=2).run(Path(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_conversion_resumes_and_gives_the_same(tmp_path: Path, num_workers: int) -> None:
    corpus = tmp_path / "corpus"
    write_split(corpus, "train", 400)
    expected = contents(convert(tmp_path, corpus, examples_per_group=2)[2])
    script, out = tmp_path / "script.py", tmp_path / "killed"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(corpus / SET / "train.json"), str(corpus), str(out), str(num_workers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not list((out / "shards").glob("*.tar")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "index.npz").exists(), "killed in the middle"
    kept = {path: path.stat().st_mtime_ns for path in (out / "shards").glob("*.json")}
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)
    assert contents(out) == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was done is not done again"
    assert not list(out.rglob("*.partial"))
