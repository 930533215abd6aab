"""The job that writes text states: what the thinker gives, complete, and it resumes where it was killed."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from datamodules.conversion.corpus_converter import CorpusConverter
from datamodules.formats.released_layout import ReleasedLayout
from datamodules.shards.sharded_examples import ConvertedCorpus
from datamodules.shards.text_state_files import TextStateFiles
from datamodules.shards.text_state_index import TextStateIndex
from experiments.jobs.text_state_writer import TextStateWriter
from lightning_modules.adapters.lora import lora_layers, select_adapters, with_merged_adapters
from lightning_modules.stored_text_states import thinker_digest
from lightning_modules.thinker.thinker import Thinker
from tests.datamodules.tiny_corpus import write_split
from tests.lightning_modules.test_speech_llm import make_thinker


@pytest.fixture
def examples(tmp_path: Path) -> ReleasedLayout:
    write_split(tmp_path, "train", 9)
    return ReleasedLayout(tmp_path / "spoken_examples" / "train.json", tmp_path, fields=["query"])


def write(
    examples: ReleasedLayout | ConvertedCorpus, output_dir: Path, thinker: Thinker | None = None, **settings: object
) -> dict:
    defaults = {"batch_size": 2, "bfloat16": False, "examples_per_group": 4, **settings}
    return TextStateWriter(thinker or make_thinker(), {"train": examples}, **defaults).run(output_dir)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.bin"))}


def test_states_are_those_of_each_example_alone_and_can_be_read_back(examples: ReleasedLayout, tmp_path: Path) -> None:
    report = write(examples, tmp_path / "out")
    thinker = make_thinker().eval()
    files = TextStateFiles.open(str(tmp_path / "out" / "spoken_examples"), examples.ids, "train")
    num_tokens = 0
    for position in range(len(examples)):
        example = examples[position]
        assert example.query is not None
        with torch.no_grad():
            output = thinker(example.query[None], torch.tensor([len(example.query)]), [example.reply_text])
        states = files.read(position, example.reply_text)
        assert torch.equal(states.token_ids, output.token_ids[0])
        torch.testing.assert_close(states.hidden.float(), output.hidden[0], rtol=2**-8, atol=1e-5)
        num_tokens += len(states.token_ids)
    assert report["train/num_replies"] == 9 and report["train/num_text_tokens"] == num_tokens
    assert report["num_bytes"] == num_tokens * (4 + 2 * thinker.hidden_size)


def test_adapters_are_merged_into_a_copy_and_states_stay_those_of_the_thinker(
    examples: ReleasedLayout, tmp_path: Path
) -> None:
    thinker = make_thinker().eval()
    thinker.language_model.add_lora(rank=2)
    with torch.no_grad():
        for name, weight in thinker.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    before = {name: weight.clone() for name, weight in thinker.state_dict().items()}
    example = examples[0]
    assert example.query is not None
    with torch.no_grad():
        output = thinker(example.query[None], torch.tensor([len(example.query)]), [example.reply_text])
        plain = make_thinker().eval()(example.query[None], torch.tensor([len(example.query)]), [example.reply_text])
    writer = TextStateWriter(thinker, {"train": examples}, batch_size=1, bfloat16=False)
    writer.run(tmp_path / "out")
    assert not list(lora_layers(writer.thinker)) and writer.thinker is not thinker
    files = TextStateFiles.open(str(tmp_path / "out" / "spoken_examples"), examples.ids, "train")
    states = files.read(0, example.reply_text)
    torch.testing.assert_close(states.hidden.float(), output.hidden[0], rtol=2**-7, atol=1e-4)
    assert not torch.allclose(states.hidden.float(), plain.hidden[0], rtol=0.1)
    assert str(files.index.thinker) == thinker_digest(thinker)
    assert all(torch.equal(weight, before[name]) for name, weight in thinker.state_dict().items())
    select_adapters(thinker.language_model, [])
    with torch.no_grad():
        idle = with_merged_adapters(thinker)(
            example.query[None], torch.tensor([len(example.query)]), [example.reply_text]
        )
    assert torch.equal(idle.hidden, plain.hidden), "an adapter that is not in use changes nothing"
    half = make_thinker().bfloat16()
    half.language_model.add_lora(rank=2)
    assert with_merged_adapters(half) is half, "small changes would be rounded away"


def test_a_corpus_of_shards_has_the_states_of_the_loose_files(examples: ReleasedLayout, tmp_path: Path) -> None:
    CorpusConverter(str(examples.index), [str(tmp_path)], num_workers=0, examples_per_group=5).run(tmp_path / "shards")
    write(examples, tmp_path / "loose", batch_size=9, examples_per_group=9)
    corpus = ConvertedCorpus(str(tmp_path / "shards"))
    # beside the speech
    write(corpus, tmp_path / "shards", set_name=None, batch_size=9, examples_per_group=9)
    found = []
    for folder in ("loose/spoken_examples", "shards"):
        files = TextStateFiles.open(str(tmp_path / folder), examples.ids, folder)
        found.append([files.read(row, item.reply_text) for row, item in enumerate(examples.items)])
    for loose, sharded in zip(*found, strict=True):
        assert torch.equal(loose.token_ids, sharded.token_ids) and torch.equal(loose.hidden, sharded.hidden)


def test_it_resumes_where_it_was_killed(examples: ReleasedLayout, tmp_path: Path) -> None:
    whole = write(examples, tmp_path / "out")
    folder = tmp_path / "out" / "spoken_examples" / "text_states"
    before, files = contents(folder), sorted(folder.rglob("*.bin"))
    times = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    files[2].with_suffix(".npz").unlink()
    (folder / "index.npz").unlink()
    (folder / "shards" / ".train-000000004.bin.1.partial").write_bytes(b"of a killed process")
    assert write(examples, tmp_path / "out") == whole
    assert contents(folder) == before, "byte for byte"
    assert [file for file in files if file.stat().st_mtime_ns == times[file]] == [files[1]], "the whole one is kept"
    assert not list(folder.rglob("*.partial"))


class SlowThinker(Thinker):
    """Takes a while over a batch, so that a kill comes while it works."""

    def forward(self, *args: object, **settings: object):  # type: ignore[override,no-untyped-def]
        time.sleep(0.05)
        return super().forward(*args, **settings)  # type: ignore[arg-type]


def _write_slowly(root: str, output_dir: str) -> None:
    torch.set_num_threads(1)
    layout = ReleasedLayout(Path(root) / "spoken_examples" / "train.json", root, fields=["query"])
    thinker = make_thinker()
    thinker.__class__ = SlowThinker
    write(layout, Path(output_dir), thinker)


def test_it_comes_to_the_same_bytes_however_often_it_is_killed(examples: ReleasedLayout, tmp_path: Path) -> None:
    write(examples, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    shards = tmp_path / "out" / "spoken_examples" / "text_states" / "shards"
    context = multiprocessing.get_context("fork")
    for num_shards in (1, 2):  # killed while it writes the shard after those
        process = context.Process(target=_write_slowly, args=(str(tmp_path), str(tmp_path / "out")))
        process.start()
        while len(list(shards.glob("*.npz"))) < num_shards:
            time.sleep(0.002)
            assert process.is_alive()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(list(shards.glob("*.npz"))) == num_shards
    write(examples, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_shards_of_another_thinker_or_of_other_examples_are_written_again(
    examples: ReleasedLayout, tmp_path: Path
) -> None:
    write(examples, tmp_path / "out")
    index = tmp_path / "out" / "spoken_examples" / "text_states" / "index.npz"
    first = TextStateIndex.load(index)
    other = make_thinker()
    other.language_model.add_lora(rank=2)
    write(examples, tmp_path / "out", other)
    second = TextStateIndex.load(index)
    assert str(second.thinker) != str(first.thinker) and second.ids.tolist() == first.ids.tolist()
    fewer = ReleasedLayout(examples.index, examples.index.parent.parent, fields=["query"], max_examples=3)
    write(fewer, tmp_path / "out", other)
    assert sorted(TextStateIndex.load(index).ids.tolist()) == ["train_0", "train_1", "train_2"]
    assert len(contents(tmp_path / "out")) == 1, "shards that no index names are removed"


def test_splits_that_share_an_id_are_refused(examples: ReleasedLayout, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"splits\.again: the id 'train_0' occurs in train, too"):
        TextStateWriter(make_thinker(), {"train": examples, "again": examples}).run(tmp_path / "out")


def test_the_constructor_reads_nothing_and_moves_nothing(tmp_path: Path) -> None:
    with torch.device("meta"):
        thinker = torch.nn.Linear(2, 2)
        layout = ReleasedLayout(tmp_path / "absent.json", tmp_path, fields=["query"])
        corpus = ConvertedCorpus(str(tmp_path / "absent"))
        writer = TextStateWriter(thinker, {"train": layout, "shards": corpus})  # type: ignore[arg-type]
    assert writer.thinker.weight.is_meta
    with pytest.raises(ValueError, match="batch_size is 0"):
        TextStateWriter(thinker, {"train": layout}, batch_size=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"splits\.train: reads \['units'\]"):
        TextStateWriter(thinker, {"train": ReleasedLayout("", "", fields=["units"])})  # type: ignore[arg-type]
