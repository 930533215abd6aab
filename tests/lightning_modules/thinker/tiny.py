"""Tiny parts of a thinker, built in memory."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.speech_encoder import SpeechEncoder

REPLIES = ["The capital of France is Paris.", "I will wake you at seven.", "Yes."]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(special_tokens: tuple[str, ...] = ("<|im_start|>", "<|audio|>")) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on three sentences."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_end|>", *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(REPLIES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(special_tokens),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_speech_encoder(pad_to_s: float | None = None, attention: str = "sdpa") -> SpeechEncoder:
    """Build an untrained encoder with two small layers, 6 s long at most."""
    return SpeechEncoder.from_config(
        width=32,
        num_layers=2,
        num_heads=2,
        feed_forward_width=64,
        max_positions=300,
        pad_to_s=pad_to_s,
        attention=attention,
    )


def make_language_model() -> LanguageModel:
    """Build an untrained Qwen3 with two small layers, grouped keys and distinct logits."""
    language_model = LanguageModel.from_config(
        vocab_size=304, width=32, num_layers=2, num_heads=4, num_key_value_heads=2, feed_forward_width=64
    )
    with torch.no_grad():
        for parameter in language_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    return language_model
