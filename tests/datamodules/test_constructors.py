"""Constructors run before the first stage: they read and write no file, compute nothing, and refuse wrong numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from audiomentations import AddGaussianSNR

from datamodules.conversion.corpus_check import CorpusCheck
from datamodules.conversion.corpus_converter import CorpusConverter
from datamodules.conversion.packing import PackingRules
from datamodules.formats.released_layout import ReleasedLayout
from datamodules.query_augmentation import QueryAugmentation
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from datamodules.shards.byte_ranges import RangeCache
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from datamodules.synthetic.spoken_examples import SpokenExamplesMaker
from datamodules.synthetic.text_tokenizer import TextTokenizerTrainer

SETS = {"one": ShardedSet("nowhere")}


@pytest.mark.parametrize(
    "build",
    [
        lambda: CorpusCheck("nowhere"),
        lambda: CorpusConverter("nowhere/train.json", ["nowhere"], PackingRules(num_codes=10), "nowhere/tokenizer"),
        lambda: ReleasedLayout("nowhere/train.json", "nowhere"),
        lambda: QueryAugmentation([AddGaussianSNR(p=1.0)]),
        lambda: ShardedDialogueDataModule(SETS, "nowhere", "nowhere", cache_dir="nowhere/cache"),
        lambda: RangeCache(Path("nowhere/cache"), 100),
        lambda: SpokenDialogueDataModule("nowhere", "nowhere/tokens", "nowhere/states"),
        lambda: SpokenExamplesMaker(),
        lambda: TextTokenizerTrainer("nowhere"),
    ],
)
def test_nothing_is_read_written_or_computed(
    build: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        build()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CorpusCheck("", num_codes=0), "num_codes is 0"),
        (lambda: CorpusCheck("", num_samples=-1), "num_samples is -1"),
        (lambda: CorpusCheck("", num_workers=-1), "num_workers is -1"),
        (lambda: CorpusCheck("", seed=-1), "seed is -1"),
        (lambda: ReleasedLayout("", "", num_codes=0), "num_codes is 0"),
        (lambda: ReleasedLayout("", "", max_examples=0), "max_examples is 0"),
        (lambda: QueryAugmentation([AddGaussianSNR()], seed=-1), "seed is -1"),
        (lambda: ShardedSet("", weight=float("nan")), "weight is nan"),
        (lambda: ShardedSet("", weight=-1.0), "weight is -1"),
        (lambda: ShardedDialogueDataModule({"one": ShardedSet("", weight=0.0)}), "at least one set"),
        (lambda: ShardedDialogueDataModule({}), "at least one set"),
        (lambda: ShardedDialogueDataModule(SETS, fields=["reply"]), r"unknown \['reply'\]; choose among \['query', "),
        (lambda: ShardedDialogueDataModule(SETS, seed=-1), "seed is -1"),
        (lambda: ShardedDialogueDataModule(SETS, max_tokens=0), "max_tokens is 0"),
        (lambda: ShardedDialogueDataModule(SETS, max_examples=0), "max_examples is 0"),
        (lambda: ShardedDialogueDataModule(SETS, eval_batch_size=0), "eval_batch_size is 0"),
        (lambda: ShardedDialogueDataModule(SETS, num_workers=-1), "num_workers is -1"),
        (lambda: ShardedDialogueDataModule(SETS, num_attempts=0), "num_attempts is 0"),
        (lambda: ShardedDialogueDataModule(SETS, cache_gb=0.0), "cache_gb is 0"),
        (lambda: ShardedDialogueDataModule(SETS, max_skipped_share=1.5), "max_skipped_share is 1.5"),
        (lambda: TextTokenizerTrainer("", min_frequency=0), "min_frequency is 0"),
    ],
)
def test_wrong_numbers_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
