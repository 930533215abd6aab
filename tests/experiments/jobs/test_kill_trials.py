"""Killed trainings equal those that were not killed, and trials notice it when they do not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.conversion.corpus_converter import CorpusConverter
from experiments.jobs import kill_trials
from experiments.jobs.kill_trials import KillTrials
from experiments.jobs.killed_training import RESULTS, KillCase, Training
from tests.datamodules.test_streamed_text_states import write_states
from tests.datamodules.tiny_corpus import write_split


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_split(root / "loose", "train", 60)
    CorpusConverter(
        str(root / "loose/spoken_examples/train.json"), [str(root / "loose")], num_workers=0, examples_per_group=20
    ).run(root / "converted")
    write_states(root / "converted", [f"train_{number}" for number in range(60)])
    return root / "converted"


CASES = [
    KillCase(num_workers=1),
    KillCase(num_ranks=(2,)),
    KillCase(num_ranks=(2, 1), num_workers=2),
    KillCase(num_workers=2, accumulate=2),
]


@pytest.mark.parametrize("case", CASES)
def test_a_killed_training_equals_one_that_was_not_killed(shards: Path, tmp_path: Path, case: KillCase) -> None:
    fields = ["units", "text_states"]
    found = KillTrials(str(shards), num_kills=2, cases=[case], max_tokens=80, fields=fields).run(tmp_path)
    assert found["num_kills"] == 2
    assert found["num_examples"] >= 150, "two and a half epochs per training"
    assert "| 2 |" in (tmp_path / "results.md").read_text()


def test_a_training_killed_after_its_last_batch_has_nothing_left_to_do(shards: Path, tmp_path: Path) -> None:
    task = Training(str(shards), str(tmp_path), KillCase(), 1.0, 80, checkpoint_every=1, seed=0, num_ranks=1)
    records = []
    for _ in range(2):
        (process,) = kill_trials._start(task)
        process.join()
        records.append((tmp_path / RESULTS).read_text())
        (tmp_path / RESULTS).unlink()  # as if it had not come to write it
    assert records[0] == records[1]


RECORD = {"ids": [[["a", "b"]], [["c"]], [["b", "a"]], [["c"]]], "losses": [1.0, 0.9, 0.8, 0.7]}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda record: record["ids"].pop(1), "did not come|more than once"),
        (lambda record: record["ids"][1][0].append("a"), "more than once"),
    ],
)
def test_examples_that_are_lost_or_come_twice_are_seen(harm, message: str) -> None:
    record = json.loads(json.dumps(RECORD))
    kill_trials._check_epochs(record, ["a", "b", "c"], KillCase())
    harm(record)
    with pytest.raises(ValueError, match=message):
        kill_trials._check_epochs(record, ["a", "b", "c"], KillCase())


def test_other_losses_are_seen(tmp_path: Path) -> None:
    found = {**RECORD, "losses": [1.0, 0.9, 0.81, 0.7]}
    with pytest.raises(ValueError, match="losses differ from batch 2 on"):
        kill_trials._compare(found, RECORD, KillCase(), tmp_path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KillTrials("anywhere", num_kills=0), "num_kills is 0"),
        (lambda: KillTrials("anywhere", num_epochs=0.0), "num_epochs is 0"),
        (lambda: KillTrials("anywhere", seed=-1), "seed is -1"),
        (lambda: KillTrials("anywhere", cases=[]), "cases is empty"),
        (lambda: KillCase(num_ranks=[]), "num_ranks is 0"),
        (lambda: KillCase(num_ranks=[2, 0]), "num_ranks is 0"),
        (lambda: KillCase(num_workers=-1), "num_workers is -1"),
        (lambda: KillCase(accumulate=0), "accumulate is 0"),
    ],
)
def test_impossible_trials_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
