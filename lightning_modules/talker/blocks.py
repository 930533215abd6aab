"""Speech tokens laid out in diffusion blocks of equal size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.talker.network.transfers import send_to
from lightning_modules.talker.vocabulary import SpeechVocabulary


@dataclass(frozen=True)
class BlockedSpeech:
    """A batch of speech token sequences in whole blocks.

    Attributes:
        x_0: Clean tokens, EOS from the end of speech to the end of its block, PAD beyond, ``(B, L) int64``.
        is_real: True in a sequence's own blocks, False in padding, ``(B, L) bool``, on the host.
        num_speech_tokens: Speech tokens before the first EOS, ``(B,) int64``, on the host.
        block_size: Tokens per block; ``L`` is a multiple of it.

    What follows from the lengths alone is kept on the host, so that it is known there how many positions a loss reads,
    and no step of a training waits for a device to say so.
    """

    x_0: Tensor
    is_real: Tensor
    num_speech_tokens: Tensor
    block_size: int

    @property
    def num_blocks(self) -> int:
        """Blocks of the longest sequence."""
        return self.x_0.shape[1] // self.block_size

    @property
    def num_own_blocks(self) -> Tensor:
        """Blocks of each sequence, ``(B,) int64``."""
        return count_blocks(self.num_speech_tokens, self.block_size)

    @property
    def is_up_to_first_eos(self) -> Tensor:
        """True for the speech tokens and the EOS that ends them, ``(B, L) bool``, on the host."""
        positions = torch.arange(self.x_0.shape[1])
        return positions <= self.num_speech_tokens[:, None]


def count_blocks(num_speech_tokens: Tensor, block_size: int) -> Tensor:
    """Count the blocks that hold a sequence and at least one EOS.

    Args:
        num_speech_tokens: Speech tokens without EOS, any shape, int64.
        block_size: Tokens per block.

    Returns:
        Blocks, of the same shape, int64.
    """
    return num_speech_tokens // block_size + 1


def lay_out_in_blocks(units: Tensor, lengths: Tensor, vocabulary: SpeechVocabulary, block_size: int) -> BlockedSpeech:
    """Fill each sequence with EOS to the end of its last block and pad the batch.

    Args:
        units: Speech tokens, right-padded with anything, ``(B, T) int64``.
        lengths: Speech tokens of each row, ``(B,) int64``; copied to the host if they are not there.
        vocabulary: Gives the ids of EOS and PAD.
        block_size: Tokens per block.

    Returns:
        The batch in blocks.

    Raises:
        UserError: If a unit on the host lies outside the codebook; for a device, call :func:`refuse_foreign_codes`
            before the batch goes there.
    """
    if units.device.type == "cpu":
        refuse_foreign_codes(units, lengths, vocabulary)
    lengths = lengths.cpu()
    batch_size, num_units = units.shape
    num_own_blocks = count_blocks(lengths, block_size)
    total = int(num_own_blocks.max()) * block_size
    positions = torch.arange(total)
    is_speech = positions < lengths[:, None]
    is_real = positions < (num_own_blocks * block_size)[:, None]
    filling = torch.where(is_real, vocabulary.eos_id, vocabulary.pad_id)
    x_0 = units.new_full((batch_size, total), vocabulary.pad_id)
    x_0[:, : min(num_units, total)] = units[:, :total]
    x_0 = torch.where(send_to(units.device, is_speech), x_0, send_to(units.device, filling))
    return BlockedSpeech(x_0, is_real, lengths, block_size)


def refuse_foreign_codes(units: Tensor, lengths: Tensor, vocabulary: SpeechVocabulary) -> None:
    """Refuse speech tokens that are not of a codebook; on a device, the host waits for the answer.

    Args:
        units: Speech tokens, right-padded with anything, ``(B, T) int64``.
        lengths: Speech tokens of each row, ``(B,) int64``.
        vocabulary: Knows the size of the codebook.

    Raises:
        UserError: If a unit lies outside the codebook.
    """
    is_speech = torch.arange(units.shape[1], device=units.device) < lengths[:, None].to(units.device)
    outside = units[is_speech & ((units < 0) | (units >= vocabulary.num_codes))]
    if len(outside):
        raise UserError(
            f"Speech token {int(outside[0])} lies outside the codebook of {vocabulary.num_codes} codes: "
            "set the talker's num_codes to the size of the codec that wrote the tokens."
        )
