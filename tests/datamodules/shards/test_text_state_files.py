"""Text states in shards: what was written is read again, in any order, and only for the replies it was written for."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batch import bits_of, from_bits
from datamodules.shards.shard_files import DamagedExampleError
from datamodules.shards.text_state_files import StoredStates, TextStateFiles
from datamodules.shards.text_state_index import StateShardWriter, TextStateIndex
from lightning_modules.errors import UserError

WIDTH = 6


def make_states(count: int, seed: int = 0) -> list[StoredStates]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [
        StoredStates(
            torch.randint(0, 150_000, (length,), generator=generator),
            torch.randn(length, WIDTH, generator=generator).bfloat16(),
        )
        for length in lengths
    ]


def write(root: Path, states: list[StoredStates], shard_sizes: list[int]) -> Path:
    """Write examples `x0`, `x1`, ... with replies `reply 0`, ... to shards of these sizes."""
    folder = root / "text_states"
    (folder / "shards").mkdir(parents=True)
    parts, start = [], 0
    for number, size in enumerate(shard_sizes):
        path = folder / "shards" / f"{number}.bin"
        with StateShardWriter.create(path, "digest", WIDTH) as writer:
            for row in range(start, start + size):
                one = states[row]
                writer.write(f"x{row}", f"reply {row}", one.token_ids.numpy(), bits_of(one.hidden))
        parts.append(TextStateIndex.load(path.with_suffix(".npz")))
        start += size
    TextStateIndex.join(parts).save(folder / "index.npz")
    return folder


@settings(max_examples=25, deadline=None)
@given(data=st.data(), shard_sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
def test_any_examples_are_read_in_any_order_from_any_shards(data: st.DataObject, shard_sizes: list[int]) -> None:
    states = make_states(sum(shard_sizes))
    corpus = data.draw(st.lists(st.sampled_from(range(len(states))), min_size=1, unique=True), "order of the corpus")
    asked = data.draw(st.lists(st.sampled_from(range(len(corpus))), max_size=12), "rows, with repetitions")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), states, shard_sizes)
        files = TextStateFiles.open(folder, [f"x{row}" for row in corpus], "corpus")
        found = files.read_many(asked, [f"reply {corpus[row]}" for row in asked])
    assert len(files) == len(corpus) and len(found) == len(asked)
    for row, one in zip(asked, found, strict=True):
        assert isinstance(one, StoredStates)
        assert one.token_ids.dtype == torch.int64 and one.hidden.dtype == torch.bfloat16
        assert torch.equal(one.token_ids, states[corpus[row]].token_ids)
        assert torch.equal(one.hidden, states[corpus[row]].hidden)


def test_bits_are_those_of_bfloat16_and_rounding_is_that_of_torch() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert bits_of(values).dtype == np.uint16
    assert torch.equal(from_bits(bits_of(values)), values.bfloat16())


def test_damaged_states_and_those_of_another_reply_are_told_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path, make_states(6), [4, 2])
    files = TextStateFiles.open(str(tmp_path), [f"x{row}" for row in range(6)], "corpus")
    shard = folder / "shards" / "0.bin"
    content = bytearray(shard.read_bytes())
    content[int(files.index.offsets[1])] ^= 1
    shard.write_bytes(content)
    (folder / "shards" / "1.bin").unlink()
    replies = [f"reply {row}" for row in range(6)]
    replies[2] = "a reply that was changed since"
    found = files.read_many(range(6), replies)
    damaged = {row: str(one) for row, one in enumerate(found) if isinstance(one, DamagedExampleError)}
    assert damaged.keys() == {1, 2, 4, 5}
    assert all(f"x{row}: its text states" in problem for row, problem in damaged.items())
    with pytest.raises(UserError, match="x2: .* written for another reply"):
        files.read(2, replies[2])


def test_what_cannot_be_opened_says_how_to_fix_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no index of text states; run the stage text_states"):
        TextStateFiles.open(str(tmp_path), ["x0"], "corpus")
    folder = write(tmp_path, make_states(2), [2])
    with pytest.raises(FileNotFoundError, match="corpus, item 'y': has no text states, nor have 1 others of 3"):
        TextStateFiles.open(str(tmp_path), ["x0", "y", "z"], "corpus")
    (folder / "index.npz").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(UserError, match="index of text states is damaged .*--force"):
        TextStateFiles.open(str(tmp_path), ["x0"], "corpus")
    (folder / "index.npz").unlink()
    np.save(folder / "x0.npy", np.zeros((3, 8), np.float32))
    with pytest.raises(UserError, match="of an older form, one .npy file per example; run .*--force"):
        TextStateFiles.open(str(tmp_path), ["x0"], "corpus")


def test_an_unfinished_shard_is_not_there(tmp_path: Path) -> None:
    states = make_states(1)[0]
    with pytest.raises(KeyError), StateShardWriter.create(tmp_path / "a.bin", "digest", WIDTH) as writer:
        writer.write("x0", "reply", states.token_ids.numpy(), bits_of(states.hidden))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_files_take_at_most_a_twentieth_more_than_ids_and_states(tmp_path: Path) -> None:
    """At the quickstart's width and length of replies, where the index of shards and the whole index weigh most."""
    folder, width, generator = tmp_path / "text_states", 128, np.random.default_rng(0)
    (folder / "shards").mkdir(parents=True)
    parts = []
    for number in range(2):
        path = folder / "shards" / f"train-{number}.bin"
        with StateShardWriter.create(path, "0" * 64, width) as writer:
            for row in range(1000 * number, 1000 * number + 1000):
                count = int(generator.integers(4, 13))
                bits = generator.integers(0, 2**16, (count, width), dtype=np.uint16)
                writer.write(f"train_{row:05d}", "a reply", generator.integers(0, 300, count), bits)
        parts.append(TextStateIndex.load(path.with_suffix(".npz")))
    index = TextStateIndex.join(parts)
    index.save(folder / "index.npz")
    on_disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert index.num_bytes == sum(index.num_tokens) * (4 + 2 * width)
    assert 1 < on_disk / index.num_bytes < 1.05
