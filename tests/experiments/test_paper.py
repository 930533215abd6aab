"""The experiments of paper/ are built at tiny size, and at full size without weights; their parameters are counted."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, WhisperModel

from experiments.engine.artifacts import without_weights
from experiments.engine.configuration.config import shipped_at_paper_scale
from experiments.engine.plan import make_plan
from experiments.jobs.cost.memory_estimate import build_without_weights, sizes_of
from lightning_modules.speech_llm import SpeechLLM
from tests.experiments.paper_inputs import (
    FULL,
    LLAMA_3_2_1B,
    QWEN3_8B,
    WHISPER_LARGE_V3,
    tiny_overrides,
    write_inputs,
)

FILES = {file.stem: file for file in shipped_at_paper_scale()}
WIDTH, FFN, LAYERS, CODES = 2048, 8192, 4, 6561
WHISPER_ENCODER = 636_968_960


def talker_parameters(hidden_size: int, extra_layers: int = 0) -> int:
    """Count a talker's parameters by hand."""
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * FFN + 2 * WIDTH
    anchors = 2 * hidden_size + 2 * hidden_size * WIDTH + WIDTH + WIDTH
    return LAYERS * layer + WIDTH + extra_layers * (layer + WIDTH) + anchors + (CODES + 4) * WIDTH + (CODES + 1) * WIDTH


def test_every_experiment_is_known() -> None:
    assert FILES.keys() == FULL.keys()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", ["tiny", pytest.param("full", marks=pytest.mark.slow)])
def test_it_composes_and_builds_without_weights(name: str, size: str, tmp_path: Path) -> None:
    overrides = write_inputs(name, tmp_path, size == "full")
    plan = make_plan(FILES[name], overrides + (tiny_overrides(name) if size == "tiny" else []))
    assert [path for planned in plan.stages for path in planned.unchecked] == []
    assert [planned.stage.name for planned in plan.stages] == ["thinker", "talkers", "distilled_talkers", "evaluation"]
    epochs, batches = [], []
    for planned in plan.stages[:3]:
        trainer, data = planned.config["trainer"], planned.config["datamodule"]["init_args"]
        epochs.append(trainer["max_epochs"])
        batches.append(trainer["devices"] * data["max_examples"] * trainer.get("accumulate_grad_batches", 1))
        assert planned.config["module"]["init_args"]["learning_rate"] == 2e-4
    assert (epochs, batches) == ([1, 8, 4], [32, 32, 32]), "the paper's"


def test_the_reference_models_have_their_published_sizes() -> None:
    with torch.device("meta"):
        sizes = [AutoModelForCausalLM.from_config(one).num_parameters() for one in (QWEN3_8B, LLAMA_3_2_1B)]
        encoder = WhisperModel._from_config(WHISPER_LARGE_V3).encoder
    assert sizes == [8_190_735_360, 1_235_814_400]
    assert sum(one.numel() for one in encoder.parameters()) == WHISPER_ENCODER


@pytest.mark.parametrize("name", FILES)
def test_parameters_at_full_size(name: str, tmp_path: Path) -> None:
    plan = make_plan(FILES[name], write_inputs(name, tmp_path, True), check=False)
    hidden, num_layers = FULL[name].hidden_size, FULL[name].num_hidden_layers
    of_language_model = 8_190_735_360 if name == "qwen3_8b" else 1_235_814_400
    adaptor = (5 * 1280 + 1) * 2048 + (2048 + 1) * hidden
    key_value = FULL[name].num_key_value_heads * FULL[name].head_dim
    ffn, rank = FULL[name].intermediate_size, 16
    lora = num_layers * rank * (2 * 2 * hidden + 2 * (hidden + key_value) + 3 * (hidden + ffn))
    with without_weights({one.run.directory: one.config for one in plan.stages}):
        thinker, talkers, distilled = (build_without_weights(planned) for planned in plan.stages[:3])
    assert all(isinstance(module, SpeechLLM) for module, _ in (thinker, talkers, distilled))
    sizes = {part: (one.num_trainable, one.num_frozen) for part, one in sizes_of(*thinker).items()}
    assert sizes == {
        "thinker.speech_encoder": (0, WHISPER_ENCODER),
        "thinker.adaptor": (adaptor, 0),
        "thinker.language_model": (lora, of_language_model),
    }
    mdm, frozen = (
        talker_parameters(hidden),
        {"thinker.adaptor": (0, adaptor), "thinker.language_model": (0, lora + of_language_model)},
    )
    frozen["thinker.speech_encoder"] = (0, WHISPER_ENCODER)
    expected = {"talkers.mdm": (mdm, 0)}
    if name == "vocalnet_1b":
        expected |= {"talkers.ntp": (mdm, 0), "talkers.mtp": (talker_parameters(hidden, 5), 0)}
    sizes = {part: (one.num_trainable, one.num_frozen) for part, one in sizes_of(*talkers).items()}
    assert sizes == frozen | expected
    sizes = {part: (one.num_trainable, one.num_frozen) for part, one in sizes_of(*distilled).items()}
    assert sizes == frozen | {"talkers.mdm": (mdm, 0), "teachers.mdm": (0, mdm)}
