"""In each stage on pretrained parts, what is meant to train does, by name and by value, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.self_distillation_rounds import SelfDistillationRounds
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.thinker.objective import ThinkerObjective
from tests.lightning_modules.pretrained import load_pretrained_thinker, save_pretrained_parts
from tests.lightning_modules.talker.conftest import build_talker
from tests.lightning_modules.test_speech_llm import fit

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a tiny Whisper and a tiny Qwen3."""
    folder = tmp_path_factory.mktemp("parts")
    save_pretrained_parts(folder)
    return folder


def make_stage(parts: Path, objective: ThinkerObjective | None, *talkers: str, **thinker: Any) -> SpeechLLM:
    built = load_pretrained_thinker(parts, **thinker)
    of_thinker = built.hidden_size, built.embedding_size
    given = {kind: build_talker(kind, *of_thinker) for kind in talkers}
    return SpeechLLM(built, given, objective, learning_rate=1e-2, warmup_steps=0, log_every_n_steps=1)


def train_and_compare(llm: SpeechLLM, meant: set[str], **trainer_settings: Any) -> dict[str, Tensor]:
    """Train, and check which weights moved, have gradients and are known to the optimizer; give them as they were."""
    before = {name: one.detach().clone() for name, one in llm.named_parameters()}
    trainer = fit(llm, 3, **trainer_settings)
    after = dict(llm.named_parameters())
    assert {name for name, one in after.items() if not torch.equal(one, before[name])} == meant
    assert {name for name, one in after.items() if one.grad is not None} <= meant
    (optimizer,) = trainer.optimizers
    known = {id(one) for group in optimizer.param_groups for one in group["params"]}
    assert known == {id(after[name]) for name in meant} == {id(one) for one in optimizer.state}
    assert {after[name].dtype for name in meant} == {torch.float32}
    return before


def names(llm: SpeechLLM, *parts: str) -> set[str]:
    return {name for name, _ in llm.named_parameters() if any(part in name for part in parts)}


def test_stage_1_trains_adaptor_and_lora(parts: Path) -> None:
    llm = make_stage(parts, ThinkerObjective())
    meant = names(llm, "thinker.adaptor", ".lora_")
    assert len(meant) == 4 + 2 * 2 * 7, "seven layers of two blocks have two matrices each"
    train_and_compare(llm, meant)
    frozen = {one.dtype for name, one in llm.named_parameters() if name not in meant}
    assert frozen == {torch.bfloat16}


def test_stage_1_without_lora_trains_the_language_model_in_float32(parts: Path) -> None:
    llm = make_stage(parts, ThinkerObjective(), lora_rank=None)
    meant = names(llm, "thinker.adaptor", "thinker.language_model")
    with pytest.warns(UserWarning, match="were loaded in 16 bits but train: they are kept in float32"):
        train_and_compare(llm, meant, precision="bf16-mixed")
    encoder = llm.thinker.speech_encoder.parameters()
    assert {one.dtype for one in encoder} == {torch.bfloat16}


def test_stage_2_trains_talkers(parts: Path) -> None:
    llm = make_stage(parts, None, "ntp", "mdm", lora_rank=None)
    train_and_compare(llm, names(llm, "talkers."))
    assert {one.dtype for name, one in llm.thinker.named_parameters() if "adaptor" not in name} == {torch.bfloat16}


def test_stage_3_trains_students_and_no_teacher(parts: Path) -> None:
    llm = make_stage(parts, None, "mdm", lora_rank=None)
    rounds = SelfDistillationRounds(["mdm"], [{"num_steps": 2}])
    before = train_and_compare(llm, names(llm, "talkers."), callbacks=[rounds])
    (teacher,) = rounds.teachers.values()
    for name, parameter in teacher.named_parameters():
        assert not parameter.requires_grad and parameter.grad is None
        assert torch.equal(parameter, before[f"talkers.mdm.{name}"])
