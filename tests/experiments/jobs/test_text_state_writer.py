"""The job that writes text states: what the thinker gives, complete, and it resumes where it was killed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.formats.released_layout import ReleasedLayout
from experiments.jobs.text_state_writer import TextStateWriter
from tests.datamodules.tiny_corpus import write_split
from tests.lightning_modules.test_speech_llm import make_thinker


@pytest.fixture
def examples(tmp_path: Path) -> ReleasedLayout:
    write_split(tmp_path, "train", 5)
    return ReleasedLayout(tmp_path / "spoken_examples" / "train.json", tmp_path, fields=["query"])


def write(examples: ReleasedLayout, output_dir: Path) -> dict:
    return TextStateWriter(make_thinker(), {"train": examples}, batch_size=2, bfloat16=False).run(output_dir)


def test_states_are_those_of_each_example_alone_and_can_be_read_back(examples: ReleasedLayout, tmp_path: Path) -> None:
    report = write(examples, tmp_path / "out")
    thinker = make_thinker().eval()
    index = examples.index
    read = ReleasedLayout(index, index.parent.parent, fields=["text_states"], text_states_root=tmp_path / "out")
    num_tokens = 0
    for position in range(len(examples)):
        example = examples[position]
        assert example.query is not None
        with torch.no_grad():
            output = thinker(example.query[None], torch.tensor([len(example.query)]), [example.reply_text])
        expected = torch.cat([output.hidden[0], output.embedding[0]], dim=-1)
        states = read[position].text_states
        assert states is not None
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
        num_tokens += len(states)
    assert report == {"train/num_replies": 5, "train/num_text_tokens": num_tokens}


def test_it_resumes_where_it_was_killed(examples: ReleasedLayout, tmp_path: Path) -> None:
    whole = write(examples, tmp_path / "out")
    folder = tmp_path / "out" / "spoken_examples" / "text_states"
    files = sorted(folder.iterdir())
    before = {file: (file.stat().st_mtime_ns, np.load(file)) for file in files}
    files[0].unlink()
    assert write(examples, tmp_path / "out") == whole
    kept = [file for file in files if file.stat().st_mtime_ns == before[file][0]]
    assert 3 <= len(kept) < 5, "only the batch of the missing file is run again"
    for file in files:
        np.testing.assert_array_equal(np.load(file), before[file][1])


def test_states_of_another_kind_are_refused_by_name(examples: ReleasedLayout, tmp_path: Path) -> None:
    write(examples, tmp_path / "out")
    file = tmp_path / "out" / "spoken_examples" / "text_states" / f"{examples.items[0].id}.npy"
    index = examples.index
    settings = {"fields": ["text_states"], "text_states_root": tmp_path / "out"}
    for content in (np.zeros((2, 3, 4), np.float32), np.zeros((0, 4), np.float32), np.zeros((2, 4), np.int64)):
        np.save(file, content)
        with pytest.raises(ValueError, match=f"{file.name}: text states have shape"):
            ReleasedLayout(index, index.parent.parent, **settings)[0]
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not a readable .npy file of text states"):
        ReleasedLayout(index, index.parent.parent, **settings)[0]
    file.unlink()
    with pytest.raises(FileNotFoundError, match="text_states_root to the run that wrote the text states"):
        ReleasedLayout(index, index.parent.parent, **settings).load()


def test_the_constructor_reads_nothing_and_moves_nothing(tmp_path: Path) -> None:
    with torch.device("meta"):
        thinker = torch.nn.Linear(2, 2)
        layout = ReleasedLayout(tmp_path / "absent.json", tmp_path, fields=["query"])
        writer = TextStateWriter(thinker, {"train": layout})  # type: ignore[arg-type]
    assert writer.thinker.weight.is_meta
    with pytest.raises(ValueError, match="batch_size is 0"):
        TextStateWriter(thinker, {"train": layout}, batch_size=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"splits\.train: reads \['units'\]"):
        TextStateWriter(thinker, {"train": ReleasedLayout("", "", fields=["units"])})  # type: ignore[arg-type]
