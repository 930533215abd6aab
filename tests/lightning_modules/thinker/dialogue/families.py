"""Tiny tokenizers with the special tokens, end-of-text tokens and chat templates of published families.

The templates print what the published ones print for turns of text; their branches for tools are left out.
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.lightning_modules.thinker.tiny import REPLIES

TEMPLATES = Path(__file__).parent / "chat_templates"


@dataclass(frozen=True)
class Family:
    """What a published tokenizer brings.

    Attributes:
        name: File name of its chat template.
        special_tokens: All of its special tokens that matter here.
        named: Those that its tokenizer names, by their keys.
        audio_token: A special token that its texts never use.
        blank_token: The same for transcriptions; None if there is a padding token.
        user: What its template prints before a user's turn, and behind it.
        assistant: What its template prints before an assistant's turn, and behind it.
        start: What its template prints at the start without a system prompt.
        start_with_system: The same with the system prompt "Be brief.".
        generation: What its template prints before the reply that is to be written.
    """

    name: str
    special_tokens: tuple[str, ...]
    named: dict[str, str | list[str]]
    audio_token: str
    blank_token: str | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    start: str
    start_with_system: str
    generation: str


_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>")
_QWEN_NAMED: dict[str, str | list[str]] = {
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|vision_pad|>"],
}
_QWEN_USER = ("<|im_start|>user\n", "<|im_end|>\n")
_QWEN_ASSISTANT = ("<|im_start|>assistant\n", "<|im_end|>\n")
_LLAMA_SYSTEM = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)

QWEN3 = Family(
    "qwen3",
    _QWEN_TOKENS,
    _QWEN_NAMED,
    audio_token="<|vision_pad|>",
    blank_token=None,
    user=_QWEN_USER,
    assistant=_QWEN_ASSISTANT,
    start="",
    start_with_system="<|im_start|>system\nBe brief.<|im_end|>\n",
    generation="<|im_start|>assistant\n<think>\n\n</think>\n\n",
)
QWEN2_5 = Family(
    "qwen2_5",
    _QWEN_TOKENS,
    _QWEN_NAMED,
    audio_token="<|vision_pad|>",
    blank_token=None,
    user=_QWEN_USER,
    assistant=_QWEN_ASSISTANT,
    start="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n",
    start_with_system="<|im_start|>system\nBe brief.<|im_end|>\n",
    generation="<|im_start|>assistant\n",
)
# Its tokenizer names neither a padding token nor most of its special tokens, and a text ends with another token than a
# turn.
LLAMA3_2 = Family(
    "llama3_2",
    (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
    ),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    audio_token="<|reserved_special_token_0|>",
    blank_token="<|finetune_right_pad_id|>",
    user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    start=_LLAMA_SYSTEM + "<|eot_id|>",
    start_with_system=_LLAMA_SYSTEM + "Be brief.<|eot_id|>",
    generation="<|start_header_id|>assistant<|end_header_id|>\n\n",
)
FAMILIES = (QWEN3, QWEN2_5, LLAMA3_2)


def make_family_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, and give it the special tokens and the chat template of a family."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(REPLIES, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in family.special_tokens])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **family.named)
    tokenizer.chat_template = (TEMPLATES / f"{family.name}.jinja").read_text(encoding="utf-8")
    return tokenizer
