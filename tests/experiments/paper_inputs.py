"""What the experiments of paper/ ask for, in the real formats: configurations at full size, or tiny ones."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config, WhisperConfig

from tests.lightning_modules.thinker.tiny import make_tokenizer
from tests.lightning_modules.vocoder.stand_in_cosyvoice import write_checkout, write_model

AUDIO_TOKENS = {"qwen3_8b": "<|vision_pad|>", "one_gpu_1b": "<|reserved_special_token_0|>"}
AUDIO_TOKENS["vocalnet_1b"] = AUDIO_TOKENS["one_gpu_1b"]
WHISPER_LARGE_V3 = WhisperConfig(
    vocab_size=51866, num_mel_bins=128, d_model=1280, encoder_layers=32, encoder_attention_heads=20,
    encoder_ffn_dim=5120, decoder_layers=32, decoder_attention_heads=20, decoder_ffn_dim=5120,
    max_source_positions=1500, max_target_positions=448,
)  # fmt: skip
QWEN3_8B = Qwen3Config(
    vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=False,
)  # fmt: skip
LLAMA_3_2_1B = LlamaConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, tie_word_embeddings=True,
)  # fmt: skip
TINY_WHISPER = WhisperConfig(
    d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=64, max_source_positions=1500,
)  # fmt: skip
TINY_SIZES: dict[str, Any] = {
    "vocab_size": 304, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
FULL: dict[str, PretrainedConfig] = {"qwen3_8b": QWEN3_8B, "one_gpu_1b": LLAMA_3_2_1B, "vocalnet_1b": LLAMA_3_2_1B}
TINY: dict[str, PretrainedConfig] = {
    "qwen3_8b": Qwen3Config(**TINY_SIZES),
    "one_gpu_1b": LlamaConfig(**TINY_SIZES, tie_word_embeddings=True),
    "vocalnet_1b": LlamaConfig(**TINY_SIZES, tie_word_embeddings=True),
}
CORPORA = ("voice_assistant", "ultrachat", "validation", "test")
RUNS: dict[str, dict[str, Any]] = {
    "codec": {
        "class_path": "lightning_modules.speech_codec.SpeechCodec",
        "init_args": {"levels": [3] * 8},
    },
    "recognizer": {
        "class_path": "lightning_modules.speech_recognizer.SpeechRecognizer",
        "init_args": {
            "encoder": {
                "class_path": "lightning_modules.acoustics.conv_speech_encoder.ConvSpeechEncoder",
                "init_args": {"channels": 16},
            }
        },
    },
}
TINY_TALKER = "module.init_args.talkers.{}.init_args"
TINY_OVERRIDES = {
    "thinker": ["module.init_args.thinker.init_args.adaptor.init_args={input_size: 32, output_size: 32}"],
    "mdm": [
        "anchors.init_args={hidden_size: 32, embedding_size: 32, width: 64, anchors_per_block: 4}",
        "backbone.init_args={width: 64, num_layers: 2, num_heads: 4, ffn_width: 128}",
    ],
}


def write_inputs(name: str, folder: Path, full_size: bool) -> list[str]:
    """Write what an experiment asks for, without any weights, and give the overrides that name it."""
    whisper, causal_lm = (WHISPER_LARGE_V3, FULL[name]) if full_size else (TINY_WHISPER, TINY[name])
    for what, config, architecture in (
        ("speech_encoder", whisper, "WhisperModel"),
        ("language_model", causal_lm, "Qwen3ForCausalLM" if name == "qwen3_8b" else "LlamaForCausalLM"),
    ):
        config.architectures = [architecture]
        config.save_pretrained(folder / what)
    make_tokenizer(("<|im_start|>", AUDIO_TOKENS[name])).save_pretrained(folder / "language_model")
    for run, module in RUNS.items():
        (folder / run).mkdir()
        OmegaConf.save({"module": module, "fingerprint": "0" * 16}, folder / run / "config.yaml")
    for corpus in CORPORA:
        (folder / corpus).mkdir()
    write_checkout(folder / "cosyvoice")
    write_model(folder / "cosyvoice2")
    names = ("speech_encoder", "language_model", "cosyvoice", "cosyvoice2", *CORPORA, "recognizer")
    return [*(f"inputs.{one}={folder / one}" for one in names), f"runs_dir={folder / 'runs'}"]


def tiny_overrides(name: str) -> list[str]:
    """Give the overrides that make an experiment fit tiny models."""
    found = [f"stages.thinker.{one}" for one in TINY_OVERRIDES["thinker"]]
    for stage in ("talkers", "distilled_talkers"):
        found += [f"stages.{stage}.{TINY_TALKER.format('mdm')}.{one}" for one in TINY_OVERRIDES["mdm"]]
    if name == "vocalnet_1b":
        backbone = "lightning_modules.talker.network.backbone.TalkerBackbone"
        layer = f"{{class_path: {backbone}, init_args: {{width: 64, num_layers: 1}}}}"
        found.append(f"stages.talkers.{TINY_TALKER.format('mtp')}.extra_layers=[{', '.join([layer] * 5)}]")
        sizes = "{hidden_size: 32, ffn_size: 64, num_heads: 4, num_codes: 6561}"
        found.append(f"stages.talkers.{TINY_TALKER.format('vocalnet')}.sizes={sizes}")
    return found
