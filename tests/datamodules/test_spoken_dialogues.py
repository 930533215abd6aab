"""The DataModule: batches for every stage, crops that depend on seed, epoch and example alone, shares for ranks."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules.batch import SAMPLE_RATE_HZ
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from tests.datamodules.tiny_corpus import write_split

CROP_S = 0.1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for split, count in (("train", 11), ("validation", 3), ("test", 5)):
        write_split(root, split, count)
    return root


def test_every_stage_gets_its_split(corpus: Path) -> None:
    data = SpokenDialogueDataModule(str(corpus), batch_size=4, eval_batch_size=2, max_test_examples=3)
    data.setup("fit")
    data.setup("test")
    assert sorted(len(batch) for batch in data.train_dataloader()) == [3, 4, 4]
    assert [batch.ids for batch in data.val_dataloader()] == [["validation_0", "validation_1"], ["validation_2"]]
    assert [batch.ids for batch in data.test_dataloader()] == [["test_0", "test_1"], ["test_2"]]
    assert [batch.ids for batch in data.test_dataloader()] == [batch.ids for batch in data.test_dataloader()]


def test_evaluation_loader_can_be_used_again(corpus: Path) -> None:
    loader = SpokenDialogueDataModule(str(corpus), eval_batch_size=2).val_dataloader()
    assert [batch.ids for batch in loader] == [batch.ids for batch in loader]


def test_evaluation_that_was_left_early_starts_from_the_front(corpus: Path) -> None:
    loader = SpokenDialogueDataModule(str(corpus), eval_batch_size=2).test_dataloader()
    next(iter(loader))
    assert next(iter(loader)).ids == ["test_0", "test_1"]


def test_set_without_validation_has_no_validation_batches(corpus: Path) -> None:
    data = SpokenDialogueDataModule(str(corpus), validation_index=None)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="validation_index is null"):
        data.examples("validation")


def replies_by_epoch(corpus: Path, seed: int) -> list[dict[str, torch.Tensor]]:
    data = SpokenDialogueDataModule(str(corpus), fields=["reply"], batch_size=11, seed=seed, reply_crop_s=CROP_S)
    loader = data.train_dataloader()
    return [dict(zip(batch.ids, batch.reply, strict=True)) for _ in range(2) for batch in loader]


def test_crops_are_stretches_of_the_reply_and_depend_on_seed_and_epoch(corpus: Path) -> None:
    first, second = replies_by_epoch(corpus, seed=0)
    again, _ = replies_by_epoch(corpus, seed=0)
    other, _ = replies_by_epoch(corpus, seed=1)
    examples = SpokenDialogueDataModule(str(corpus), fields=["reply"]).examples("train")
    whole = {examples[i].id: examples[i].reply for i in range(len(examples))}
    for name, crop in first.items():
        assert crop.shape == (round(CROP_S * SAMPLE_RATE_HZ),)
        assert (whole[name].unfold(0, crop.numel(), 1) == crop).all(dim=1).any()
        assert torch.equal(again[name], crop)
    assert any(not torch.equal(second[name], crop) for name, crop in first.items())
    assert any(not torch.equal(other[name], crop) for name, crop in first.items())


def test_ranks_share_the_corpus(corpus: Path) -> None:
    seen: list[str] = []
    for rank in range(2):
        data = SpokenDialogueDataModule(str(corpus), fields=[], batch_size=2, eval_batch_size=2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        loader = data.train_dataloader()
        assert len(loader) == 3
        seen += [name for batch in loader for name in batch.ids]
    assert sorted(seen) == sorted(f"train_{number}" for number in range(11))


def on_ranks(corpus: Path, world_size: int, state: dict | None = None) -> list[SpokenDialogueDataModule]:
    """Return the DataModules of processes that train together."""
    ranks = []
    for rank in range(world_size):
        data = SpokenDialogueDataModule(str(corpus), fields=[], batch_size=2, seed=7)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
        if state is not None:
            data.load_state_dict(state)
        ranks.append(data)
    return ranks


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 1)])
def test_an_epoch_resumes_on_other_devices_with_each_example_once(corpus: Path, before: int, after: int) -> None:
    first = on_ranks(corpus, before)
    loaders = [iter(data.train_dataloader()) for data in first]
    seen = sum((next(loader).ids for loader in loaders), [])
    resumed = on_ranks(corpus, after, first[0].state_dict())
    loaders = [itertools.chain.from_iterable(itertools.repeat(data.train_dataloader())) for data in resumed]
    while len(seen) < 11:
        seen += sum((next(loader).ids for loader in loaders), [])
    assert sorted(seen) == sorted(f"train_{number}" for number in range(11))


def test_state_goes_through_the_data_module(corpus: Path) -> None:
    data = SpokenDialogueDataModule(str(corpus), fields=[], batch_size=2)
    assert data.state_dict() == {}
    whole = [batch.ids for batch in data.train_dataloader()]
    begun = iter(data.train_dataloader())
    first = [next(begun).ids for _ in range(2)]
    resumed = SpokenDialogueDataModule(str(corpus), fields=[], batch_size=2)
    resumed.load_state_dict(data.state_dict())
    assert first + [batch.ids for batch in resumed.train_dataloader()] == whole


@pytest.fixture(scope="module")
def several(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two corpora whose examples have the same names."""
    root = tmp_path_factory.mktemp("other")
    for split, count in (("train", 5), ("validation", 2), ("test", 3)):
        write_split(root, split, count, seed=1)
    return {"first": str(corpus), "other": str(root)}


def test_several_corpora_are_read_as_one(several: dict[str, str]) -> None:
    data = SpokenDialogueDataModule(several, fields=["query", "units"], batch_size=4)
    alone = {name: SpokenDialogueDataModule(root, batch_size=1) for name, root in several.items()}
    wanted = {
        f"{name}/{batch.ids[0]}": (name, batch.units[0, : batch.unit_lengths[0]])
        for name, one in alone.items()
        for batch in one.train_dataloader()
    }
    found = {
        name: (corpus, units[:length])
        for batch in data.train_dataloader()
        for name, corpus, units, length in zip(batch.ids, batch.corpora, batch.units, batch.unit_lengths, strict=True)
    }
    assert len(found) == 16 and found.keys() == wanted.keys()
    for name, (corpus, units) in found.items():
        assert corpus == wanted[name][0] and torch.equal(units, wanted[name][1])
    assert sum((batch.ids for batch in data.test_dataloader()), []) == [
        *(f"first/test_{index}" for index in range(5)),
        *(f"other/test_{index}" for index in range(3)),
    ]


def test_an_epoch_takes_each_corpus_by_its_weight(several: dict[str, str]) -> None:
    weights = {"other": 3, "first": 1}
    data = SpokenDialogueDataModule(several, fields=[], batch_size=4, weights=weights)
    corpora = sum((batch.corpora for batch in data.train_dataloader()), [])
    assert (corpora.count("first"), corpora.count("other")) == (11, 15)


def test_several_corpora_resume_with_the_next_batch(several: dict[str, str]) -> None:
    whole = [batch.ids for batch in SpokenDialogueDataModule(several, fields=[], batch_size=3).train_dataloader()]
    data = SpokenDialogueDataModule(several, fields=[], batch_size=3)
    begun = iter(data.train_dataloader())
    first = [next(begun).ids for _ in range(2)]
    resumed = SpokenDialogueDataModule(several, fields=[], batch_size=3)
    resumed.load_state_dict(data.state_dict())
    assert first + [batch.ids for batch in resumed.train_dataloader()] == whole


def test_one_corpus_by_name_is_read_like_one_without(corpus: Path) -> None:
    unnamed = SpokenDialogueDataModule(str(corpus), fields=[], batch_size=2, seed=3).train_dataloader()
    named = SpokenDialogueDataModule({"a": str(corpus)}, fields=[], batch_size=2, seed=3).train_dataloader()
    assert [[f"a/{name}" for name in batch.ids] for batch in unnamed] == [batch.ids for batch in named]


def test_speech_tokens_of_each_corpus_come_from_its_own_folder(several: dict[str, str], tmp_path: Path) -> None:
    roots = {"first": several["first"], "other": str(tmp_path)}
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.* is missing"):
        SpokenDialogueDataModule(several, units_root=roots).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": {}}, "root is an empty mapping"),
        ({"root": {"a": "x", "b": "y"}, "units_root": "z"}, "units_root='z' does not go with root="),
        ({"root": {"a": "x", "b": "y"}, "weights": {"a": 1}}, "weights=.* does not go with root="),
        ({"root": "x", "weights": {"a": 1}}, "one value for one corpus"),
        ({"root": {"a": "x"}, "weights": {"a": -1}}, "is -1"),
    ],
)
def test_folders_and_weights_are_those_of_the_corpora(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpokenDialogueDataModule(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_test_examples": 0}, "max_test_examples is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"num_codes": 0}, "num_codes is 0"),
        ({"fields": ["speech"]}, r"fields: unknown \['speech'\]"),
        ({"test_fields": ["speech"]}, r"test_fields: unknown \['speech'\]"),
        ({"reply_crop_s": 1.0}, "hold no 'reply' to crop"),
        ({"reply_crop_s": 0.0, "fields": ["reply"]}, "reply_crop_s is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpokenDialogueDataModule("nowhere", **settings)


def test_missing_corpus_is_named(tmp_path: Path) -> None:
    data = SpokenDialogueDataModule(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere/spoken_examples/train.json: no such index"):
        data.setup("fit")
