"""Short names of keys on the command line."""

from pathlib import Path

import pytest

from experiments.engine.configuration.config import compose
from experiments.engine.configuration.errors import ConfigError
from experiments.engine.configuration.help import describe_file
from experiments.engine.plan import make_plan

TEXT = """
description: Toy.
job: {class_path: tests.experiments.engine.toy.ToyJob}
"""
ALIASES = """
aliases:
  number: {key: job.init_args.number, help: what is written}
  label: {key: job.init_args.label, is_text: true}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "toy.yaml"
    file.write_text(TEXT + ALIASES)
    return file


@pytest.mark.parametrize("label", ["Note: who is it?", "yes", "[a", "a=b", "7"])
def test_a_short_name_stands_for_its_key_and_a_text_is_taken_as_it_is(file: Path, label: str) -> None:
    (stage,) = compose(file, ["number=7", f"label={label}"]).stages
    assert stage.config["job"]["init_args"] == {"number": 7, "label": label}


def test_short_names_change_no_fingerprint(file: Path) -> None:
    named = make_plan(file, ["number=3"]).stages[0]
    file.write_text(TEXT)
    assert named.run == make_plan(file, ["job.init_args.number=3"]).stages[0].run
    assert "aliases" not in named.config


def test_an_error_names_the_key_that_is_meant(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"^job.init_args.number: expected int, got 'seven'"):
        make_plan(file, ["number=seven"])
    with pytest.raises(ConfigError, match=r"^job.init_args.number"):
        make_plan(file, ["number=[1, 2]"])
    with pytest.raises(ConfigError, match=r"^number: the value '\[1' is not valid YAML"):
        make_plan(file, ["number=[1"])
    file.write_text(TEXT)
    with pytest.raises(ConfigError, match="^number: unknown key"):
        compose(file, ["number=3"])


@pytest.mark.parametrize(("aliases", "message"), [("7", "aliases"), ("{a: b}", "aliases.a"), ("{a: {ky: b}}", "key")])
def test_short_names_of_another_form_are_refused(file: Path, aliases: str, message: str) -> None:
    file.write_text(f"{TEXT}\naliases: {aliases}\n")
    with pytest.raises(ConfigError, match=message):
        compose(file, [])


def test_an_experiment_says_what_one_sets_of_it(file: Path) -> None:
    file.write_text(TEXT + ALIASES + "inputs: {corpus: '???', run: latest:quickstart/comparison}\n")
    assert describe_file(file).splitlines() == [
        "toy: Toy.",
        "  number=         what is written",
        "  label=          the same as job.init_args.label",
        "  inputs.corpus=  has to be given",
        "  inputs.run=     latest:quickstart/comparison if left out",
    ]
