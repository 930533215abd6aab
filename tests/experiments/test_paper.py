"""The experiments of paper/ are built at tiny size, and at full size without weights; their parameters are counted."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, WhisperModel

from datamodules.formats.atomic_files import write_json
from experiments.engine.artifacts import without_weights
from experiments.engine.configuration.config import EXPERIMENTS_DIR, shipped_at_paper_scale
from experiments.engine.configuration.errors import ConfigError
from experiments.engine.plan import make_plan
from experiments.jobs.cost.memory_estimate import build_without_weights, sizes_of
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.token_format import TokenFormat
from tests.experiments.paper_inputs import (
    FULL,
    LLAMA_3_2_1B,
    QWEN3_8B,
    WHISPER_LARGE_V3,
    tiny_overrides,
    write_inputs,
)

TRAINING = ("thinker", "talkers", "distilled_talkers")
FILES = {file.stem: file for file in shipped_at_paper_scale()}
WIDTH, FFN, LAYERS, CODES = 2048, 8192, 4, 6561
WHISPER_ENCODER = 636_968_960


def talker_parameters(hidden_size: int, extra_layers: int = 0) -> int:
    """Count a talker's parameters by hand."""
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * FFN + 2 * WIDTH
    anchors = 2 * hidden_size + 2 * hidden_size * WIDTH + WIDTH + WIDTH
    return LAYERS * layer + WIDTH + extra_layers * (layer + WIDTH) + anchors + (CODES + 4) * WIDTH + (CODES + 1) * WIDTH


def vocalnet_parameters() -> int:
    """Count those of VocalNet-1B's talker: embeddings, 6 + 5 layers, 6 heads with norms, and the end of the text."""
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * FFN + 2 * WIDTH
    return (CODES + 4) * WIDTH + 11 * layer + 6 * ((CODES + 4) * (WIDTH + 1) + WIDTH) + WIDTH


def test_every_experiment_is_known() -> None:
    assert FILES.keys() == FULL.keys()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", ["tiny", pytest.param("full", marks=pytest.mark.slow)])
def test_it_composes_and_builds_without_weights(name: str, size: str, tmp_path: Path) -> None:
    overrides = write_inputs(name, tmp_path, size == "full")
    plan = make_plan(FILES[name], overrides + (tiny_overrides(name) if size == "tiny" else []))
    assert [path for planned in plan.stages for path in planned.unchecked] == []
    stages = {planned.stage.name: planned for planned in plan.stages}
    assert list(stages) == ["thinker", "text_states", "talkers", "distilled_talkers", "evaluation"]
    language_model = stages["thinker"].config["module"]["init_args"]["thinker"]["init_args"]["language_model"]
    assert language_model["init_args"]["gradient_checkpointing"] is True
    states = str(stages["text_states"].run.directory)
    epochs, batches = [], []
    for planned in (stages[name] for name in TRAINING):
        trainer, data = planned.config["trainer"], planned.config["datamodule"]["init_args"]
        epochs.append(trainer["max_epochs"])
        batches.append(trainer["devices"] * data["max_examples"] * trainer.get("accumulate_grad_batches", 1))
        assert planned.config["module"]["init_args"]["learning_rate"] == 2e-4
        if planned.stage.name != "thinker":
            assert data["fields"] == ["text_states", "units"] and data["validation_text_states"] == states
            assert {one["text_states"] for one in data["train"].values()} == {states}
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
        by_name = {planned.stage.name: planned for planned in plan.stages}
        thinker, talkers, distilled = (build_without_weights(by_name[stage]) for stage in TRAINING)
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
        expected |= {"talkers.vocalnet": (vocalnet_parameters(), 0)}
    sizes = {part: (one.num_trainable, one.num_frozen) for part, one in sizes_of(*talkers).items()}
    assert sizes == frozen | expected
    sizes = {part: (one.num_trainable, one.num_frozen) for part, one in sizes_of(*distilled).items()}
    assert sizes == frozen | {"talkers.mdm": (mdm, 0), "teachers.mdm": (0, mdm)}


def test_a_missing_checkout_of_cosyvoice_is_told_before_the_first_stage(tmp_path: Path) -> None:
    overrides = write_inputs("one_gpu_1b", tmp_path, False) + tiny_overrides("one_gpu_1b")
    (tmp_path / "cosyvoice" / "cosyvoice" / "flow" / "flow.py").unlink()
    with pytest.raises(ConfigError, match=r"^stages.evaluation.module.*vocoder: .*clone FunAudioLLM/CosyVoice"):
        make_plan(FILES["one_gpu_1b"], overrides)


def test_cosyvoice2_encodes_by_a_stage_that_tells_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, tokenizer = EXPERIMENTS_DIR / "stages" / "cosyvoice2_tokens.yaml", tmp_path / "speech_tokenizer_v2.onnx"
    (tmp_path / "corpus").mkdir()
    given = [f"inputs.corpus={tmp_path}/corpus", f"inputs.tokenizer={tokenizer}", f"runs_dir={tmp_path}"]
    with pytest.raises(ConfigError, match="there is no file or directory .*onnx"):
        make_plan(file, given)
    tokenizer.touch()
    monkeypatch.setitem(sys.modules, "s3tokenizer", None)
    with pytest.raises(ConfigError, match="need the package s3tokenizer, .*; install s3tokenizer, onnx"):
        make_plan(file, given)
    monkeypatch.setitem(sys.modules, "s3tokenizer", SimpleNamespace(log_mel_spectrogram=None))
    (planned,) = make_plan(file, given).stages
    assert planned.unchecked == []
    # the talkers behind it have its codes
    talkers = EXPERIMENTS_DIR / "stages" / "first_talker.yaml"
    folders = [f"inputs.{name}={tmp_path}/corpus" for name in ("corpus", "thinker", "text_states")]
    record = TokenFormat("cosyvoice2", 6561, 25, 24_000).as_record()
    (tmp_path / "tokens").mkdir()
    write_json(tmp_path / "tokens" / "codec.json", record)
    (behind,) = make_plan(talkers, [*folders, f"inputs.speech_tokens={tmp_path}/tokens"], check=False).stages
    assert behind.config["module"]["init_args"]["talkers"]["first"]["init_args"]["num_codes"] == 6561
