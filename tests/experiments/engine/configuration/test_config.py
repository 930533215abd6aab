"""Composition: parents, overrides, inheritance, interpolation."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.engine.configuration import config
from experiments.engine.configuration.config import compose, find_file, merge, read_file
from experiments.engine.configuration.errors import ConfigError
from experiments.engine.configuration.overrides import parse_override

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab 1", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
mappings = st.dictionaries(st.text("abc", min_size=1, max_size=2), values, max_size=4)


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


@given(mappings, mappings)
def test_merged_holds_all_keys_and_the_child_wins(parent: dict[str, Any], child: dict[str, Any]) -> None:
    merged = merge(parent, child)
    assert merged.keys() == parent.keys() | child.keys()
    for key, value in merged.items():
        if key not in child:
            assert value == parent[key]
        elif not (isinstance(child[key], dict) and isinstance(parent.get(key), dict)):
            assert value == child[key]


@given(mappings, mappings, mappings)
def test_merging_is_associative_and_has_a_neutral_element(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    assert merge(merge(a, {}), {}) == merge({}, a) == a
    assert merge(a, a) == a
    if all(isinstance(x.get(key), dict) == isinstance(b.get(key), dict) for x in (a, c) for key in a | b | c):
        if not any(isinstance(value, dict) for x in (a, b, c) for value in x.values()):
            assert merge(merge(a, b), c) == merge(a, merge(b, c))


def test_another_class_drops_the_arguments_of_the_parent() -> None:
    parent = {"module": {"class_path": "a.A", "init_args": {"width": 3}}}
    assert merge(parent, {"module": {"class_path": "a.B"}}) == {"module": {"class_path": "a.B"}}
    same = merge(parent, {"module": {"class_path": "a.A", "init_args": {"depth": 2}}})
    assert same["module"]["init_args"] == {"width": 3, "depth": 2}
    assert merge(parent, {"module": {"init_args": {"width": 4}}})["module"]["init_args"] == {"width": 4}


def test_parents_merge_in_order_and_the_file_wins(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "seed: 1\nthreads: 1\ntrainer: {max_steps: 1, precision: 32}\n")
    write(tmp_path / "b.yaml", "seed: 2\nthreads: 2\ncallbacks: {x: {class_path: a.B}, y: {class_path: a.C}}\n")
    child = write(tmp_path / "c.yaml", "base: [a.yaml, b]\nthreads: 3\ntrainer: {max_steps: 5}\ncallbacks: {x: null}\n")
    assert read_file(child)["seed"] == 2
    (stage,) = compose(child, []).stages
    assert stage.config["threads"] == 3
    assert stage.config["trainer"] == {"max_steps": 5, "precision": 32}
    assert stage.config["callbacks"] == {"y": {"class_path": "a.C"}}


def test_a_cycle_of_parents_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a.yaml is its own parent: a.yaml -> b.yaml -> a.yaml"):
        read_file(tmp_path / "a.yaml")


def test_pipeline_values_reach_stages_that_do_not_set_their_own(tmp_path: Path) -> None:
    write(tmp_path / "part.yaml", 'seed: 7\nthreads: 1\ninputs: {corpus: "???"}\njob: {class_path: a.B}\n')
    pipeline = write(
        tmp_path / "p.yaml",
        "seed: 3\ninputs: {corpus: /somewhere, other: /x}\n"
        "stages: {one: {base: part.yaml}, two: {base: part.yaml, seed: 5}, three: {job: {class_path: a.B}}}\n",
    )
    one, two, three = compose(pipeline, []).stages
    assert (one.config["seed"], two.config["seed"], three.config["seed"]) == (3, 5, 3)
    assert one.config["threads"] == 1
    assert one.config["inputs"] == {"corpus": "/somewhere"}
    assert three.config["inputs"] == {}
    overridden = compose(pipeline, ["seed=4", "stages.three.seed=9", "stages.two=null"])
    assert [stage.config["seed"] for stage in overridden.stages] == [4, 9]


def test_a_group_of_stages_has_a_seed_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "part.yaml", "seed_group: talkers\njob: {class_path: a.B}\n")
    pipeline = write(
        tmp_path / "p.yaml",
        "seed: 3\naliases: {talker_seed: {key: seeds.talkers}}\nstages:\n  one: {base: part.yaml}\n"
        "  two: {base: part.yaml, seed: 5}\n  three: {job: {class_path: a.B}}\n"
        "  four: {base: part.yaml, seed_group: null}\n",
    )

    def seeds(*overrides: str) -> list[int]:
        return [stage.config["seed"] for stage in compose(pipeline, list(overrides)).stages]

    assert seeds() == seeds("seeds.talkers=null") == [3, 5, 3, 3]
    assert seeds("talker_seed=8") == seeds("seeds.talkers=8") == [8, 5, 3, 3]
    assert seeds("seed=4", "talker_seed=0") == [0, 5, 4, 4]
    assert "seeds" not in compose(pipeline, ["talker_seed=8"]).stages[0].config


def test_stages_of_a_parent_keep_their_own_parents(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "part.yaml", "job: {class_path: a.B, init_args: {x: 1}}\n")
    write(tmp_path / "sub" / "p.yaml", "stages: {one: {base: part.yaml}}\n")
    child = write(tmp_path / "c.yaml", "base: sub/p.yaml\nstages: {one: {job: {init_args: {y: 2}}}}\n")
    assert compose(child, []).stages[0].config["job"]["init_args"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a=1", {"a": 1}),
        ("a.b=2e-4", {"a": {"b": 2e-4}}),
        ("a=true", {"a": True}),
        ("a=null", {"a": None}),
        ("a=", {"a": None}),
        ("a=[1, x]", {"a": [1, "x"]}),
        ("a={b: 1}", {"a": {"b": 1}}),
        ("a=/x=y", {"a": "/x=y"}),
        ("a=${seed}", {"a": "${seed}"}),
    ],
)
def test_overrides_are_yaml(text: str, parsed: dict[str, Any]) -> None:
    assert parse_override(text) == parsed or (text == "a=" and parse_override(text)["a"] in (None, ""))


MISTAKES = [
    ("seed: 1\nsed: 2\n", [], r"^sed: unknown key; did you mean seed\?$"),
    ("seed: x\n", [], r"^seed: expected int, got 'x'$"),
    ("seed: -1\n", [], r"^seed: expected a whole number from 0 to 4294967295, got -1$"),
    ("seed: 4294967296\n", [], r"^seed: expected a whole number from 0 to 4294967295, got 4294967296$"),
    ("threads: 0\n", [], r"^threads: expected a positive number, or null for all cores, got 0$"),
    ("seed: 1\n", ["checkpoint.every_n_steps=0"], r"^checkpoint.every_n_steps: expected a positive number, or null"),
    ("stages: {a: {seed: -1}}\n", [], r"^stages.a.seed: expected a whole number"),
    ("stages: {a: {job: {init_args: {x: [1, .nan]}}}}\n", [], r"^stages.a.job.init_args.x.1: nan is not a finite num"),
    ("trainer: {max_time: .inf}\n", [], r"^trainer.max_time: inf is not a finite number; .* write null for no limit$"),
    ("seed: 1\n", ["seed"], r"cannot read 'seed'; write an override as key=value"),
    ("seed: 1\n", ["a..b=1"], r"cannot read"),
    ("seed: 1\n", ["seed=[1"], r"^seed: the value '\[1' is not valid YAML"),
    ("seed: 1\n", ["checkpoint.every=3"], r"^checkpoint.every: unknown key; did you mean every_s\?$"),
    ("seed: 1\n", ["base=x"], r"^base: the parents cannot be overridden"),
    ("stages: {a: {job: {class_path: a.B}}}\n", ["stages.b.seed=1"], r"^stages.b: there is no such stage; known: a$"),
    ("stages: {a: {job: {class_path: a.B}}}\nfit: true\n", [], r"^fit: a pipeline has stages instead"),
    ("stages: {a: {runs_dir: x}}\n", [], r"^stages.a.runs_dir: a stage has no runs_dir of its own"),
    ("seeds: {a: 3}\njob: {class_path: a.B}\n", [], r"^seeds.a: no stage has this seed_group; check"),
    ("stages: {a: {seed_group: b}}\n", ["seeds.c=3"], r"^seeds.c: no stage has this seed_group; known: b$"),
    ("stages: {a: {seed_group: b}}\n", ["seeds.b=-3"], r"^stages.a.seed: expected a whole number"),
    ("stages: {a: {seeds: {b: 3}}}\n", [], r"^stages.a.seeds: a stage has no seeds of its own"),
    ("stages: {a: 3}\n", [], r"^stages.a: expected the keys of an experiment, got 3$"),
    ("stages: {}\n", [], r"^stages: the pipeline has no stage"),
    ("stages: {a: {base: p.yaml}}\n", [], r"^stages.a.base: a stage cannot be a pipeline itself$"),
    ("base: nowhere.yaml\n", [], r"^base \(in p.yaml\): there is no experiment nowhere.yaml"),
    ("base: 3\n", [], r"^base \(in p.yaml\): expected a list of files, got 3$"),
    ("a: [\n", [], r"p.yaml is not valid YAML"),
    ("- a\n", [], r"p.yaml must hold keys of an experiment"),
    ("name: ${nothing}\n", [], r"^name: .*nothing.* name a key of this experiment$"),
]


@pytest.mark.parametrize(("text", "overrides", "message"), MISTAKES)
def test_a_mistake_is_named_in_one_line(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compose(write(tmp_path / "p.yaml", text), overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_experiment_is_named_with_a_near_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "EXPERIMENTS_DIR", tmp_path)
    write(tmp_path / "quickstart.yaml", "description: Shipped.\n")
    with pytest.raises(ConfigError, match=r"there is no experiment quickstrat; did you mean quickstart\?"):
        find_file("quickstrat", tmp_path)
    assert find_file("quickstart", tmp_path / "elsewhere") == tmp_path / "quickstart.yaml"
    (tmp_path / "stages").mkdir()
    write(tmp_path / "stages" / "codec.yaml", "description: A codec.\n")
    assert find_file("codec", tmp_path / "elsewhere") == tmp_path / "stages" / "codec.yaml"
    experiments, stages = config.describe_shipped().split("\n\n")
    assert experiments == "quickstart  Shipped."
    assert stages.splitlines()[1:] == ["codec       A codec."]
