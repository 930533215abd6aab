"""What each slot of VocalNet's training sequences ``[bos, text, padding, sos, speech]`` sees.

Half of the examples see all text, as when a whole reply is spoken; the other half see it grow with the speech.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_modules.talker.masking.schemes import RowGenerators


def draw_sees_all(batch_size: int, generator: torch.Generator | RowGenerators) -> Tensor:
    """Draw which half of the examples see all of their text, ``(B,) bool``, on the generator's device."""
    if isinstance(generator, torch.Generator):
        return torch.rand(batch_size, generator=generator, device=generator.device) > 0.5
    return torch.cat([torch.rand(1, generator=own, device=own.device) for own in generator]) > 0.5


@dataclass(frozen=True)
class ReleasedLayout:
    """A batch of prefixes and speech, as the released code trains on it.

    It is not quite what decoding sees: the text of a whole reply sees itself both ways; where text grows, each block
    sees one state less, and the first slot of a block still sees the text of the block before; speech has positions
    behind all of the text from the beginning; each extra layer reads the text of the layer before it.

    Attributes:
        num_text_slots: Slots of ``[bos, text]``, padding included.
        num_speech_slots: Slots of ``[sos, speech]``, padding included.
        text_lengths: Real slots of ``[bos, text]`` of each row, ``(B,) int64``.
        sees_all: Rows whose speech sees all text, ``(B,) bool``.
        text_per_block: Text states that a further block of speech sees.
        block_size: Speech tokens per block.
    """

    num_text_slots: int
    num_speech_slots: int
    text_lengths: Tensor
    sees_all: Tensor
    text_per_block: int
    block_size: int

    @cached_property
    def speech_slots(self) -> Tensor:
        """Slots of speech, from 0 for sos, whose slot predicts the first token, ``(num_speech_slots,) int64``."""
        return torch.arange(self.num_speech_slots, device=self.text_lengths.device)

    @cached_property
    def visible_text(self) -> Tensor:
        """Text slots that each speech slot sees, bos included, ``(B, num_speech_slots) int64``."""
        lengths = self.text_lengths[:, None]
        return torch.where(self.sees_all[:, None], lengths, torch.minimum(self._grown_text(), lengths))

    def _grown_text(self) -> Tensor:
        return ((self.speech_slots - 1).clamp(min=0) // self.block_size + 1) * self.text_per_block

    def positions(self) -> Tensor:
        """Give the rotary positions, ``(B, L) int64``; a row has the same ones in any batch."""
        text = torch.arange(self.num_text_slots, device=self.text_lengths.device).expand(len(self.text_lengths), -1)
        return torch.cat([text, self._speech_starts() + self.speech_slots], dim=1)

    def _speech_starts(self) -> Tensor:
        return self.text_lengths[:, None]

    def mask(self, ahead: int = 0) -> Tensor:
        """Say what each slot may attend to, ``(B, L, L) bool``.

        Args:
            ahead: 0 for the layers that predict the next token. The ``ahead``-th layer behind them sees the text of the
                slot so many tokens later, which predicts the same token.
        """
        later = (self.speech_slots + ahead).clamp(max=self.num_speech_slots - 1)
        return self._mask(self.visible_text[:, later], self.sees_all)

    def _mask(self, visible_text: Tensor, text_sees_itself: Tensor) -> Tensor:
        num_text = self.num_text_slots
        slots = torch.arange(num_text + self.num_speech_slots, device=self.text_lengths.device)
        is_text = slots < num_text
        causal = slots <= slots[:, None]
        limit = torch.cat([self.text_lengths[:, None].expand(-1, num_text), visible_text], dim=1)
        sees_text = is_text & (slots < limit[:, :, None])
        text_order = causal | text_sees_itself[:, None, None] | ~is_text[:, None]
        sees_speech = ~is_text & ~is_text[:, None] & causal
        own = torch.eye(len(slots), dtype=torch.bool, device=slots.device)  # padding must see something
        return (sees_text & text_order) | sees_speech | own

    def next_input(self, first: Tensor, last: Tensor) -> Tensor:
        """Give what the next extra layer reads, from the states of the next token's layers and of the layer before."""
        return last


class DecodedLayout(ReleasedLayout):
    """The same batch, as decoding of one token per pass sees it.

    Where a pass predicts several tokens, it reads as many, the first of which belong to the block before if the text
    has just grown; this layout gives them the text of their own block.
    """

    def _grown_text(self) -> Tensor:
        return 1 + (self.speech_slots // self.block_size + 1) * self.text_per_block

    def _speech_starts(self) -> Tensor:
        return self.visible_text

    def mask(self, ahead: int = 0) -> Tensor:
        """Say what each slot may attend to, the same for all layers; see :class:`ReleasedLayout`."""
        return self._mask(self.visible_text, torch.zeros_like(self.sees_all))

    def next_input(self, first: Tensor, last: Tensor) -> Tensor:
        """Let all layers read the text of the first ones; see :class:`ReleasedLayout`."""
        return torch.cat([first[:, : self.num_text_slots], last[:, self.num_text_slots :]], dim=1)
