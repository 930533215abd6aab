"""Alternatives of an experiment file, chosen by name on the command line."""

from pathlib import Path

import pytest

from experiments.engine.configuration.config import compose
from experiments.engine.configuration.errors import ConfigError
from experiments.engine.configuration.help import describe_file

FILE = """
seed: 1
job: {class_path: a.Job, init_args: {width: 1, depth: 2}}
choices:
  size:
    small: {}
    8b: {seed: 8, job: {init_args: {width: 8}}}
  order: {up: {threads: 1}, down: {threads: 2}}
"""


def write(folder: Path, text: str = FILE) -> Path:
    (folder / "it.yaml").write_text(text)
    return folder / "it.yaml"


def config_of(folder: Path, *overrides: str) -> dict:
    (stage,) = compose(write(folder), list(overrides)).stages
    return stage.config


def test_the_first_alternative_counts_where_none_is_chosen(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert (config["seed"], config["threads"], config["job"]["init_args"]) == (1, 1, {"width": 1, "depth": 2})
    assert "choices" not in config


def test_a_chosen_one_lies_over_the_file_and_below_overrides(tmp_path: Path) -> None:
    config = config_of(tmp_path, "job.init_args.depth=5", "size=8b", "order=down")
    assert (config["seed"], config["threads"], config["job"]["init_args"]) == (8, 2, {"width": 8, "depth": 5})
    assert config_of(tmp_path, "seed=3", "size=8b")["seed"] == 3, "whatever the order of the words"


def test_a_child_adds_alternatives(tmp_path: Path) -> None:
    write(tmp_path)
    child = tmp_path / "child.yaml"
    child.write_text("base: it.yaml\nchoices: {size: {large: {seed: 9}, 8b: {threads: 4}}}\n")
    assert compose(child, ["size=large"]).stages[0].config["seed"] == 9
    config = compose(child, ["size=8b"]).stages[0].config
    assert (config["seed"], config["threads"]) == (8, 1), "order, chosen later, sets the threads"


def test_a_pipeline_has_choices_too(tmp_path: Path) -> None:
    text = "stages: {one: {job: {class_path: a.Job}}}\nchoices: {how: {plain: {}, odd: {stages: {one: {seed: 7}}}}}\n"
    (stage,) = compose(write(tmp_path, text), ["how=odd"]).stages
    assert stage.config["seed"] == 7


def test_help_lists_them(tmp_path: Path) -> None:
    assert describe_file(write(tmp_path)).splitlines()[1:] == [
        "  size=   small if left out, 8b",
        "  order=  up if left out, down",
    ]


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (FILE, ["size=smal"], "size: there is no size smal; did you mean small?"),
        (FILE, ["sise=8b"], "sise: unknown key"),
        ("choices: [a]", [], "choices: expected a mapping of names to alternatives, got ['a']"),
        ("choices: {size: small}", [], "choices.size: expected a mapping of alternatives, got 'small'"),
        ("choices: {size: {small: 1}}", [], "choices.size.small: expected the keys that it changes, {} for none"),
        ("choices: {seed: {a: {}}}", [], "choices.seed: seed is a key of an experiment; call the choice otherwise"),
        ("choices: {size: {a: {base: b.yaml}}}", [], "choices.size.a: base and choices belong to the file itself"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(write(tmp_path, text), overrides)
    assert str(caught.value).startswith(message)
