"""In every shipped stage the intended parameters train, by name, and no others.

By value: `test_quickstart.py` for the quickstart's stages, `tests/lightning_modules/test_what_trains.py`
for those on pretrained parts, `tests/lightning_modules/adapters/` for LoRA.
"""

from pathlib import Path

import pytest
from torch import nn

from experiments.engine.artifacts import without_weights
from experiments.engine.configuration.config import read_file, shipped_at_paper_scale, shipped_files
from experiments.engine.plan import PlannedStage, make_plan
from experiments.jobs.cost.memory_estimate import build_without_weights
from tests.experiments.paper_inputs import tiny_overrides, write_inputs

ALL = ("",)
# Beginnings of the names of what trains, by stage. LoRA stages are known by their key: their matrices train alone.
TRAINS = {
    "codec": ALL,
    "recognizer": ALL,
    "recognizer_of_voices": ALL,
    "voice_classifier": ALL,
    "adapted_codec": ("decoder.modules_to_save.trained.",),
    "neural_vocoder": ("network.",),
    "thinker_pretraining": ("thinker.",),
    "thinker": ("thinker.",),
    "robust_thinker": ("thinker.speech_encoder.", "thinker.adaptor."),  # its language model stays
    "first_talker": ("talkers.",),
    "talkers": ("talkers.",),
    "streamed_talkers": ("talkers.",),
    "few_steps_talkers": ("talkers.",),
    "expressive_few_steps_talkers": ("talkers.",),
    "trial_1": ("talkers.",),
    "trial_2": ("talkers.",),
    "trial_3": ("talkers.",),
    "long_trial_1": ("talkers.",),
    "long_trial_2": ("talkers.",),
    "long_trial_3": ("talkers.",),
    "paper_trial_1": ("talkers.",),
    "paper_trial_2": ("talkers.",),
    "paper_trial_3": ("talkers.",),
    "distilled_talkers": ("talkers.",),
    "ablation": ("talkers.",),
    "expressive_codec": ALL,
    "expressive_recognizer": ALL,
    "expressive_first_talker": ("talkers.",),
    "expressive_talkers": ("talkers.",),
    "expressive_other_talkers": ("talkers.",),
    "expressive_variants": ("talkers.",),
}
FIXED = "thinker.speech_encoder.encoder.embed_positions.weight"  # Whisper's sinusoids
PIPELINES = [file for file in shipped_files() if read_file(file).get("stages")]
# Each pipeline as it is, and with each alternative of its choices but the first, which is the default.
VARIANTS = [
    (file, override)
    for file in PIPELINES
    for override in (
        "",
        *(
            f"{key}={one}"
            for key, alternatives in read_file(file).get("choices", {}).items()
            for one in list(alternatives)[1:]
        ),
    )
]
FAST = ("quickstart", "ablation", "finetune")


def id_of(file: Path, override: str) -> str:
    return f"{file.name}-{override}" if override else file.name


def names_of(module: nn.Module, beginnings: tuple[str, ...]) -> set[str]:
    names = {name for name, _ in module.named_parameters()}
    return {name for name in names if name.startswith(beginnings)} - {FIXED}


def trainable(module: nn.Module) -> set[str]:
    return {name for name, one in module.named_parameters() if one.requires_grad}


def trainings(stages: list[PlannedStage]) -> dict[str, nn.Module]:
    with without_weights({one.run.directory: one.config for one in stages}):
        fits = [one for one in stages if one.config["module"] is not None and one.config["fit"]]
        return {one.stage.name: build_without_weights(one)[0] for one in fits}


@pytest.mark.parametrize(
    ("file", "override"),
    [
        pytest.param(*one, marks=() if one[0].stem in FAST and not one[1] else pytest.mark.slow, id=id_of(*one))
        for one in VARIANTS
    ],
)
def test_the_intended_parameters_train_and_no_others(file: Path, override: str, tmp_path: Path) -> None:
    plan = make_plan(file, [f"runs_dir={tmp_path}", *filter(None, [override])], check=False)
    adapted = {one.stage.name for one in plan.stages if (one.config["module"] or {}).get("init_args", {}).get("lora")}
    for stage, module in trainings(plan.stages).items():
        if stage in adapted:
            expected = {name for name in names_of(module, ALL) if ".lora_" in name or ".modules_to_save." in name}
        else:
            assert stage in TRAINS, f"say in TRAINS what is to train in the stage {stage}"
            expected = names_of(module, TRAINS[stage])
        assert trainable(module) == expected != set(), stage


@pytest.mark.parametrize("file", shipped_at_paper_scale(), ids=lambda file: file.name)
def test_the_intended_parameters_train_at_the_papers_scale(file: Path, tmp_path: Path) -> None:
    overrides = write_inputs(file.stem, tmp_path, False) + tiny_overrides(file.stem)
    found = trainings(make_plan(file, overrides, check=False).stages)
    assert found.keys() == {"thinker", "talkers", "distilled_talkers"}
    lora = {name for name in names_of(found["thinker"], ("thinker.language_model.",)) if ".lora_" in name}
    assert lora and trainable(found["thinker"]) == lora | names_of(found["thinker"], ("thinker.adaptor.",))
    for stage in ("talkers", "distilled_talkers"):
        assert trainable(found[stage]) == names_of(found[stage], ("talkers.",)) != set()
