"""Every shipped experiment composes, and everything it describes can be built without weights."""

from pathlib import Path

import pytest

from experiments.engine.configuration.config import compose, read_file, shipped_files
from experiments.engine.plan import LATEST_RUN, make_plan

FILES = shipped_files()
# what one has to say on the command line
NEEDED = {"speak": ["text=Hello"]}


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


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_seed_of_a_pipeline_reaches_its_stages(file: Path) -> None:
    own = {name for name, stage in (read_file(file).get("stages") or {}).items() if "seed" in (stage or {})}
    for stage in compose(file, ["seed=12345"]).stages:
        assert stage.name in own or stage.config["seed"] == 12345
