"""Tiny pretrained parts, in the formats of published ones."""

from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperModel

from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.thinker.tiny import make_language_model, make_tokenizer


def save_pretrained_parts(folder: Path) -> None:
    """Write a tiny Whisper and a tiny Qwen3 with its tokenizer in bfloat16, by `save_pretrained`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
        decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "vocab_size": 60}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        config = WhisperConfig(**sizes, **decoder, **ids, max_source_positions=300)
        WhisperModel(config).to(torch.bfloat16).save_pretrained(folder / "whisper")
        make_language_model().to(torch.bfloat16).save_pretrained(folder / "qwen3")
        make_tokenizer().save_pretrained(folder / "qwen3")


def load_pretrained_thinker(
    folder: Path, dtype: str = "bfloat16", lora_rank: int | None = 2, gradient_checkpointing: bool = False
) -> Thinker:
    """Load them as a user does, the speech encoder frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Thinker(
            SpeechEncoder.from_pretrained(folder / "whisper", dtype, pad_to_s=None),
            Adaptor(32, 32, 64),
            LanguageModel.from_pretrained(
                folder / "qwen3", dtype, lora_rank, gradient_checkpointing=gradient_checkpointing
            ),
            str(folder / "qwen3"),
            train_speech_encoder=False,
        )
