"""Runs of tiny systems with weights that are drawn at random, as trainings and comparisons leave them."""

from pathlib import Path
from typing import Any

import torch

from experiments.engine.artifacts import load_trained
from experiments.engine.configuration.builder import build
from experiments.engine.runs import Run, write_config
from tests.lightning_modules.thinker.tiny import make_tokenizer

SPEECH_LLM = "lightning_modules.speech_llm.SpeechLLM"
OBJECTIVES = "lightning_modules.codec.objectives"


def spec(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def trained(run: Path, attribute: str | None = None) -> dict[str, Any]:
    name = "experiments.engine.artifacts.load_trained"
    return spec(name, run=str(run), **({"attribute": attribute} if attribute else {}))


def thinker_spec(tokenizer: Path) -> dict[str, Any]:
    sizes = {"width": 32, "num_layers": 2, "num_heads": 2, "feed_forward_width": 64}
    return spec(
        "lightning_modules.thinker.thinker.Thinker",
        speech_encoder=spec(
            "lightning_modules.thinker.speech_encoder.SpeechEncoder.from_config", max_positions=300, **sizes
        ),
        adaptor=spec("lightning_modules.thinker.adaptor.Adaptor", input_size=32, output_size=32, hidden_size=64),
        language_model=spec(
            "lightning_modules.thinker.language_model.LanguageModel.from_config", vocab_size=304, **sizes
        ),
        tokenizer=str(tokenizer),
    )


def talker_spec(name: str, **more: Any) -> dict[str, Any]:
    network = "lightning_modules.talker.network"
    return spec(
        f"lightning_modules.talker.{name}",
        num_codes=240,
        block_size=8,
        anchors=spec(
            f"{network}.anchors.SemanticAnchors", hidden_size=32, embedding_size=32, width=32, anchors_per_block=2
        ),
        backbone=spec(f"{network}.backbone.TalkerBackbone", width=32, num_layers=2, num_heads=2),
        **more,
    )


def write_run(directory: Path, module: dict[str, Any], fits: bool = True, seed: int = 0) -> Path:
    """Write a run whose trained weights are drawn at random."""
    run = Run(directory, "1a2b3c4d")
    write_config(run.config_file, {"module": module, "fit": fits, "fingerprint": run.fingerprint})
    if fits:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            built = build(module, "module")
            left_out = [name for name, one in built.named_parameters() if not one.requires_grad]
            for name, parameter in built.named_parameters():
                if ".lora_B." in name:
                    torch.nn.init.normal_(parameter, std=0.2)
        state = {key: value for key, value in built.state_dict().items() if key not in left_out}
        run.checkpoint_file.parent.mkdir()
        left_out += [key for key in built.state_dict() if key.startswith("vocoder")]
        torch.save({"state_dict": state, "left_out": left_out, "ids_with_text_overflow": []}, run.checkpoint_file)
    return directory


def make_runs(root: Path) -> Path:
    """Write runs as the quickstart and its fine-tuning leave them: codec, base, LoRA, and a comparison of both."""
    make_tokenizer().save_pretrained(root / "tokenizer")
    masking = spec("lightning_modules.talker.masking.schemes.BlockBernoulli", low=0.3, high=1.0)
    talkers = {
        "ntp": talker_spec("autoregressive.AutoregressiveTalker"),
        "mdm": talker_spec("set_block.SetBlockTalker", masking=masking),
    }
    objective = spec("lightning_modules.thinker.objective.ThinkerObjective")
    base = write_run(
        root / "base",
        spec(SPEECH_LLM, thinker=thinker_spec(root / "tokenizer"), talkers=talkers, thinker_objective=objective),
    )
    codec = spec(
        "lightning_modules.speech_codec.SpeechCodec",
        levels=[8, 6, 5],
        channels=[8, 8, 8],
        text_reading=spec(
            f"{OBJECTIVES}.text_reading.TextReading", num_coordinates=3, ramp={"weight": 0.1}, channels=4
        ),
        shift_tolerance=spec(f"{OBJECTIVES}.shift_tolerance.ShiftTolerance", ramp={"weight": 0.1}),
    )
    write_run(root / "codec", codec, seed=1)
    parts = {
        "thinker": trained(base, "thinker"),
        "talkers": {name: trained(base, f"talkers.{name}") for name in talkers},
        "draw_weights": False,
    }
    lora = {part: {"rank": 2} for part in ("thinker.language_model", "talkers.ntp", "talkers.mdm")}
    write_run(
        root / "lora",
        spec(SPEECH_LLM, **parts, thinker_objective=objective, lora=lora),
        seed=2,
    )
    load_trained(root / "lora").save_adapter(root / "lora" / "adapters" / "last")
    vocoder = spec("lightning_modules.vocoder.codec_vocoder.CodecVocoder", codec=trained(root / "codec"))
    decodings: dict[str, dict[str, Any]] = {
        "ntp": {"talker": "ntp"},
        "mdm_4": {"talker": "mdm", "num_steps": 4},
        "ntp_voice": {"talker": "ntp", "adapter": "voice"},
        "mdm_4_voice": {"talker": "mdm", "num_steps": 4, "adapter": "voice"},
    }
    comparison = spec(
        SPEECH_LLM,
        **parts,
        vocoder=vocoder,
        decodings=decodings,
        adapters={"voice": {"folder": str(root / "lora" / "adapters" / "last")}},
        max_text_tokens=8,
        max_speech_s=1.0,
    )
    write_run(root / "comparison", comparison, fits=False)
    (root / "comparison" / "summary.txt").write_text("WER 1.23 %\n")
    return root
