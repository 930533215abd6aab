"""Stages 1 to 3, evaluation, merge, export and a fresh process, from checkpoints in the formats of Whisper and Qwen3.

The experiment is the shipped one at the paper's scale; only sizes and the length of training are small.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM, WhisperForConditionalGeneration

from datamodules.conversion.corpus_converter import CorpusConverter
from experiments.engine.artifacts import load_trained
from experiments.engine.configuration.config import EXPERIMENTS_DIR
from experiments.engine.exports import from_export
from experiments.engine.pipeline import execute
from experiments.engine.plan import make_plan
from lightning_modules.adapters.lora import adapter_names
from tests.datamodules.tiny_corpus import write_split
from tests.experiments.jobs.test_exporter import answers, assert_same, logits_elsewhere, logits_here
from tests.experiments.paper_inputs import RUNS, TINY, TINY_WHISPER, tiny_overrides, write_inputs
from tests.experiments.tiny_runs import write_run

NAME = "qwen3_8b"
CORPORA = ("voice_assistant", "ultrachat", "validation", "test")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The replies"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Checkpoints with weights, four converted corpora, a codec and a judge."""
    folder = tmp_path_factory.mktemp("inputs")
    given = write_inputs(NAME, folder, full_size=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WhisperForConditionalGeneration(TINY_WHISPER).save_pretrained(folder / "speech_encoder")
        Qwen3ForCausalLM(TINY[NAME]).save_pretrained(folder / "language_model")
    for seed, name in enumerate(CORPORA):
        write_split(folder / "loose" / name, name, 4 if name != "test" else 2, seed, num_codes=6561)
        index = folder / "loose" / name / "spoken_examples" / f"{name}.json"
        CorpusConverter(str(index), [str(folder / "loose" / name)], num_workers=0).run(folder / name)
    for seed, (name, module) in enumerate(RUNS.items()):
        write_run(folder / f"{name}_run", module, seed=seed)
    given.append(f"inputs.recognizer={folder / 'recognizer_run'}")
    # CosyVoice2's packages are no requirement here
    loader = "experiments.engine.artifacts.load_trained"
    codec = f"{{class_path: {loader}, init_args: {{run: {folder / 'codec_run'}}}}}"
    vocoder = f"{{class_path: lightning_modules.vocoder.codec_vocoder.CodecVocoder, init_args: {{codec: {codec}}}}}"
    given.append(f"stages.evaluation.module.init_args.vocoder={vocoder}")
    for stage in ("thinker", "talkers", "distilled_talkers"):
        trainer = {"devices": 1, "strategy": "auto", "accelerator": "cpu", "max_epochs": 1, "max_steps": 2}
        given += [f"stages.{stage}.trainer.{key}={value}" for key, value in trainer.items()]
        given += [
            f"stages.{stage}.datamodule.init_args.num_workers=0",
            f"stages.{stage}.module.init_args.warmup_steps=1",
        ]
    given += ["stages.evaluation.trainer.accelerator=cpu", "stages.evaluation.module.init_args.max_speech_s=1.3"]
    return given + tiny_overrides(NAME)


def test_from_published_formats_to_an_export_that_others_read(overrides: list[str], tmp_path: Path) -> None:
    plan = make_plan(EXPERIMENTS_DIR / "paper" / f"{NAME}.yaml", [*overrides, f"runs_dir={tmp_path / 'runs'}"])
    results = {one.name: one.run.directory for one in execute(plan)}
    assert json.loads((results["evaluation"] / "results.json").read_text())
    stage_1 = torch.load(results["thinker"] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert stage_1 and all(".lora_" in key or "adaptor" in key for key in stage_1), "LoRA and adaptor alone"
    for stage in ("talkers", "distilled_talkers"):
        keys = torch.load(results[stage] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert keys and not any(key.startswith("thinker") for key in keys), "the thinker is frozen"

    original = load_trained(results["evaluation"])
    assert adapter_names(original.thinker.language_model.causal_lm) == ["default"], "what stage 1 has trained"
    (exported,) = execute(
        make_plan(
            EXPERIMENTS_DIR / "stages" / "export.yaml",
            [f"inputs.run={results['evaluation']}", f"runs_dir={tmp_path / 'runs'}"],
        )
    )
    folder = exported.run.directory / "export"
    assert 0 < exported.metrics["merge_difference/text logits"] < 1e-1  # in bfloat16
    llm = from_export(folder)
    assert not adapter_names(llm.thinker.language_model.causal_lm)
    assert set(llm.talkers) == {"mdm", "mdm_distilled"}
    torch.testing.assert_close(
        logits_elsewhere(folder, tmp_path / "logits.pt").float(),
        logits_here(llm.thinker.language_model).float(),
        atol=2e-2,
        rtol=2e-2,
    )
    original.adapters.merge(None)  # in bfloat16 merging rounds: the export equals what was merged in the same way
    found, expected = answers(llm), answers(original)
    for name, one in expected.items():
        assert_same(found[name], one)
