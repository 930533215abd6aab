"""What the records of runs say of how talkers were trained."""

import json
from pathlib import Path
from typing import Any

import yaml

from callbacks.comparison.page.fairness import describe_fairness
from callbacks.comparison.page.groups import group_runs
from callbacks.comparison.page.lineage import trace
from callbacks.comparison.page.run_files import read_run
from tests.callbacks.comparison.page.tiny_run import write_run

LOADED = "experiments.engine.artifacts.load_trained"


def loaded(run: Path, talker: str) -> dict[str, Any]:
    return {"class_path": LOADED, "init_args": {"run": str(run), "attribute": f"talkers.{talker}"}}


def write_training(folder: Path, steps: int, **module: Any) -> Path:
    folder.mkdir(parents=True)
    config = {
        "module": {"init_args": module},
        "datamodule": {"init_args": {"root": str(folder.parent / "corpus-1"), "batch_size": 8}},
        "trainer": {"max_steps": 999, "devices": 2, "precision": "bf16-mixed"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "fitted.json").write_text(json.dumps({"steps": steps}))
    (folder / "finished.json").write_text(json.dumps({"seconds": 12.5}))
    (folder / "environment.json").write_text(
        json.dumps({"commit": "0123456789abcdef", "is_dirty": True, "num_cpus": 2})
    )
    return folder


def make_trainings(folder: Path) -> Path:
    (folder / "corpus-1").mkdir(parents=True)
    (folder / "corpus-1" / "finished.json").write_text(json.dumps({"metrics": {"num_train": 700}}))
    first = write_training(folder / "first-1", 60, talkers={"first": {"class_path": "x"}}, learning_rate=0.003)
    talkers = {"first": None, "ntp": {"class_path": "x"}, "mdm": {"class_path": "y"}}
    return write_training(
        folder / "talkers-2", 85, talkers=talkers, initial_talker=loaded(first, "first"), learning_rate=0.0025,
        talker_learning_rates={"mdm": 0.004},
    )  # fmt: skip


def test_a_talker_is_followed_through_all_its_trainings(tmp_path: Path) -> None:
    talkers = make_trainings(tmp_path)
    stages = trace(talkers, "mdm")
    assert [(one.run, one.num_steps, one.batch_size, one.learning_rate) for one in stages] == [
        ("first-1", 60, 16, 0.003),
        ("talkers-2", 85, 16, 0.004),
    ]
    assert stages[1].num_dialogues == 700 and stages[1].machine == "2 CPU cores"
    assert stages[1].commit == "0123456789 with changes"


def test_runs_that_were_moved_together_are_found(tmp_path: Path) -> None:
    make_trainings(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    assert [one.num_steps for one in trace(tmp_path / "after" / "talkers-2", "mdm")] == [60, 85]


def test_records_that_name_each_other_end(tmp_path: Path) -> None:
    run = tmp_path / "a-1"
    write_training(run, 1, talkers={"mdm": loaded(run, "mdm")})
    assert 1 < len(trace(run, "mdm")) < 100


def test_the_box_marks_what_is_equal_and_what_is_not(tmp_path: Path) -> None:
    talkers = make_trainings(tmp_path)
    config = {
        "fit": False,
        "module": {"init_args": {"talkers": {name: loaded(talkers, name) for name in ("ntp", "mdm")}}},
    }
    run = write_run(tmp_path / "comparison-3", config=config)
    box = describe_fairness(group_runs([read_run(run)]))
    rows = {row["title"]: row for row in box["talkers"]["rows"]}
    assert box["talkers"]["columns"] == ["ntp", "mdm"]
    assert rows["steps"] == {"title": "steps", "values": ["60 → 85 = 145"] * 2, "equal": True}
    assert rows["dialogues seen"]["values"] == ["2,320"] * 2
    assert rows["learning rate"] == {
        "title": "learning rate",
        "values": ["0.003 → 0.0025", "0.003 → 0.004"],
        "equal": False,
    }
    assert rows["data"]["values"][0] == "corpus-1, 700 dialogues"
    assert not rows["parameters"]["equal"] and rows["text it sees"]["equal"]


def test_a_run_without_records_tells_what_took_part(tmp_path: Path) -> None:
    box = describe_fairness(group_runs([read_run(write_run(tmp_path / "a"))]))
    assert {row["title"] for row in box["talkers"]["rows"]} == {"class", "parameters", "block", "text it sees"}
    assert {row["title"]: row["values"] for row in box["tests"]["rows"]}["commit"] == ["not recorded"]
