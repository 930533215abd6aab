"""Sizes and special tokens of a VocalNet talker."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_divisible


@dataclass(frozen=True)
class PrefixVocabulary:
    """Ids of speech tokens and of VocalNet's special tokens, which follow them.

    Args:
        num_codes: Size of the speech codebook.
    """

    num_codes: int

    @property
    def bos_id(self) -> int:
        """Stands before the text."""
        return self.num_codes

    @property
    def sos_id(self) -> int:
        """Start of speech, between text and speech."""
        return self.num_codes + 1

    @property
    def eos_id(self) -> int:
        """End of speech."""
        return self.num_codes + 2

    @property
    def pad_id(self) -> int:
        """Fills a batch."""
        return self.num_codes + 3

    @property
    def size(self) -> int:
        """Tokens that can be read; the output heads have as many rows."""
        return self.num_codes + 4

    @property
    def never_spoken(self) -> list[int]:
        """Tokens that are no answer."""
        return [self.bos_id, self.sos_id, self.pad_id]


@dataclass(frozen=True)
class VocalNetSizes:
    """Sizes of a VocalNet talker; the defaults are those of the released VocalNet-1B.

    Attributes:
        hidden_size: Width of the thinker's hidden states, and of the talker.
        ffn_size: Inner width of the feed-forward networks.
        num_heads: Attention heads.
        num_codes: Size of the speech codebook.
        num_encoder_layers: Layers that read text alone.
        num_decoder_layers: Layers that read text and speech, and predict the next token.
        num_extra_layers: Layers one behind the other, each of which predicts one more token.
        text_per_block: Text states that are read ahead of each block of speech.
        block_size: Speech tokens per block.

    Raises:
        UserError: If a number is out of range.
    """

    hidden_size: int = 2048
    ffn_size: int = 8192
    num_heads: int = 32
    num_codes: int = 6561
    num_encoder_layers: int = 2
    num_decoder_layers: int = 4
    num_extra_layers: int = 5
    text_per_block: int = 5
    block_size: int = 15

    def __post_init__(self) -> None:
        """Check the values."""
        require_at_least(1, **{name: value for name, value in vars(self).items() if name != "num_extra_layers"})
        require_at_least(0, num_extra_layers=self.num_extra_layers)
        require_divisible("hidden_size", self.hidden_size, "2 x num_heads =", 2 * self.num_heads)
        if self.num_extra_layers >= self.block_size:
            raise UserError(
                f"num_extra_layers is {self.num_extra_layers}; give fewer than the block_size of {self.block_size}"
            )

    @property
    def vocabulary(self) -> PrefixVocabulary:
        """The tokens."""
        return PrefixVocabulary(self.num_codes)


def sizes_of_config(config: Mapping[str, Any], where: str) -> VocalNetSizes:
    """Read the sizes from the `config.json` of a released checkpoint.

    Args:
        config: Its content.
        where: The file, for errors.

    Raises:
        UserError: If a key is missing, the talker is of another kind, or its special tokens are others.
    """
    names = {
        "hidden_size": "llm_hidden_size",
        "ffn_size": "decoder_ffn_dim",
        "num_heads": "decoder_num_heads",
        "num_codes": "unit_vocab_size",
        "num_encoder_layers": "encoder_num_layers",
        "num_decoder_layers": "decoder_num_layers",
        "num_extra_layers": "mtp_num",
        "text_per_block": "txt_token_num",
        "block_size": "speech_token_num",
    }
    missing = [key for key in ("speech_generator_type", *names.values()) if key not in config]
    if missing:
        raise UserError(
            f"{where} has no {missing}: give the directory of a VocalNet checkpoint with a speech generator"
        )
    if config["speech_generator_type"] != "ar_mtp":
        raise UserError(
            f"{where}: speech_generator_type is {config['speech_generator_type']!r}; this talker is that of 'ar_mtp'"
        )
    sizes = VocalNetSizes(**{name: int(config[key]) for name, key in names.items()})
    vocabulary = sizes.vocabulary
    expected = {
        "special_tokens": vocabulary.size - vocabulary.num_codes,
        "speech_bos_token_id": vocabulary.bos_id,
        "speech_sos_token_id": vocabulary.sos_id,
        "speech_eos_token_id": vocabulary.eos_id,
        "speech_padding_token_id": vocabulary.pad_id,
    }
    others = {key: config[key] for key, value in expected.items() if config.get(key, value) != value}
    if others:
        raise UserError(f"{where}: {others} are not what this talker has, {expected}; such a checkpoint is not known")
    return sizes


def check_width(states: Tensor, sizes: VocalNetSizes) -> None:
    """Refuse hidden states ``(..., H)`` of another width than the talker's.

    Raises:
        UserError: If they are.
    """
    if states.shape[-1] != sizes.hidden_size:
        raise UserError(
            f"the thinker's hidden states are {states.shape[-1]} wide, this talker's hidden_size is "
            f"{sizes.hidden_size}: take the thinker that the talker was trained with, or make them equal"
        )
