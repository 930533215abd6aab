"""Every single stage that is shipped composes, and its classes take the arguments that it gives them."""

from pathlib import Path

import pytest

from datamodules.formats.atomic_files import write_json
from experiments.engine.configuration.config import read_file, shipped_stages
from experiments.engine.dry_build import check_stage
from experiments.engine.plan import make_plan
from lightning_modules.token_format import TokenFormat

# what one has to say on the command line beside the inputs
NEEDED = {
    "memory": ["job.init_args.experiment=paper/qwen3_8b"],
    "full_size_steps": ["job.init_args.estimate.init_args.experiment=paper/qwen3_8b"],
}


@pytest.mark.parametrize("file", shipped_stages(), ids=lambda file: file.name)
def test_it_composes_and_its_arguments_fit(file: Path, tmp_path: Path) -> None:
    inputs = read_file(file).get("inputs") or {}
    for name in inputs:
        (tmp_path / name).mkdir()
        if name == "speech_tokens":  # talkers take the size of their vocabulary from there
            write_json(tmp_path / name / "codec.json", TokenFormat("codec", 1000, 25, 16_000).as_record())
    given = [f"inputs.{name}={tmp_path / name}" for name, value in inputs.items() if value is not None]
    plan = make_plan(file, [*given, *NEEDED.get(file.stem, ()), f"runs_dir={tmp_path}"], check=False)
    (planned,) = plan.stages
    check_stage(planned.config, "")
    assert plan.pipeline.description and "\n" not in plan.pipeline.description
