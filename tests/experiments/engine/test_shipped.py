"""Every shipped experiment composes, and everything it describes can be built without weights."""

from pathlib import Path

import pytest

from experiments.engine.configuration.config import compose, read_file, shipped_files
from experiments.engine.plan import LATEST_RUN, make_plan

FILES = shipped_files()
# what one has to say on the command line
NEEDED = {"speak": ["text=Hello"], "compare": ["runs=[A, B]"]}
CHOICES = [
    (file, f"{name}={value}")
    for file in FILES
    for name, values in (read_file(file).get("choices") or {}).items()
    for value in list(values)[1:]  # the first one counts where none is named
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_composes_and_builds_without_weights(file: Path, tmp_path: Path) -> None:
    content = read_file(file)
    given = content.get("inputs") or {}
    open_inputs = [name for name, value in given.items() if str(value).startswith(("???", LATEST_RUN))]
    inputs = [f"inputs.{name}={tmp_path}" for name in open_inputs]
    plan = make_plan(file, [*inputs, *NEEDED.get(file.stem, ()), f"runs_dir={tmp_path}"])
    assert plan.pipeline.description, "say in one line what it is, in `description`"
    assert "\n" not in plan.pipeline.description
    assert len({planned.run.directory for planned in plan.stages}) == len(plan.stages)
    assert [path for planned in plan.stages for path in planned.unchecked] == []
    assert plan.to_yaml()


@pytest.mark.parametrize(("file", "choice"), CHOICES, ids=str)
def test_its_choices_compose_and_build_without_weights(file: Path, choice: str, tmp_path: Path) -> None:
    # Without a word it is checked above.
    plans = [make_plan(file, [*words, f"runs_dir={tmp_path}"], check=bool(words)) for words in ([], [choice])]
    assert [path for planned in plans[1].stages for path in planned.unchecked] == []
    runs = [[planned.run.directory for planned in plan.stages] for plan in plans]
    assert runs[0] != runs[1], "it changes nothing"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_seed_of_a_pipeline_reaches_its_stages(file: Path) -> None:
    own = {name for name, stage in (read_file(file).get("stages") or {}).items() if "seed" in (stage or {})}
    for stage in compose(file, ["seed=12345"]).stages:
        assert stage.name in own or stage.config["seed"] == 12345
