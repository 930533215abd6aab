"""What each position of VocalNet's training sequences ``[bos, text, padding, sos, speech]`` sees.

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
class PrefixLayout:
    """A batch of prefixes and speech.

    Attributes:
        num_text_slots: Slots of ``[bos, text]``, padding included.
        num_speech_slots: Slots of ``[sos, speech]``, padding included.
        text_lengths: Real slots of ``[bos, text]`` of each row, ``(B,) int64``.
        sees_all: Rows whose speech sees all text, and whose text sees itself both ways, ``(B,) bool``.
        text_per_block: Text slots, bos included, that a further block of speech sees.
        block_size: Speech tokens per block.
    """

    num_text_slots: int
    num_speech_slots: int
    text_lengths: Tensor
    sees_all: Tensor
    text_per_block: int
    block_size: int

    @property
    def positions(self) -> Tensor:
        """Rotary positions, ``(B, L) int64``: speech goes on where a row's own text ends, whatever it is padded to."""
        device = self.text_lengths.device
        text = torch.arange(self.num_text_slots, device=device).expand(len(self.text_lengths), -1)
        speech = self.text_lengths[:, None] + torch.arange(self.num_speech_slots, device=device)
        return torch.cat([text, speech], dim=1)

    @cached_property
    def visible_text(self) -> Tensor:
        """Text slots that each speech slot sees, ``(B, num_speech_slots) int64``.

        Slot 0 is sos; the slots of the first block are 0 to ``block_size``, since the last of them, which predicts the
        first token of the next block, was trained with the text of its own.
        """
        slots = torch.arange(self.num_speech_slots, device=self.text_lengths.device)
        grown = ((slots - 1).clamp(min=0) // self.block_size + 1) * self.text_per_block
        lengths = self.text_lengths[:, None]
        return torch.where(self.sees_all[:, None], lengths, torch.minimum(grown, lengths))

    def mask(self, ahead: int = 0) -> Tensor:
        """Say what each slot may attend to, ``(B, L, L) bool``.

        Args:
            ahead: 0 for the layers that predict the next token. The ``ahead``-th layer behind them sees the text of the
                slot so many tokens later.
        """
        num_text, num_speech = self.num_text_slots, self.num_speech_slots
        slots = torch.arange(num_text + num_speech, device=self.text_lengths.device)
        is_text = slots < num_text
        causal = slots <= slots[:, None]
        later = torch.arange(ahead, ahead + num_speech, device=slots.device).clamp(max=num_speech - 1)
        limit = torch.cat([self.text_lengths[:, None].expand(-1, num_text), self.visible_text[:, later]], dim=1)
        sees_text = is_text & (slots < limit[:, :, None])
        text_order = causal | self.sees_all[:, None, None] | ~is_text[:, None]
        sees_speech = ~is_text & ~is_text[:, None] & causal
        own = torch.eye(len(slots), dtype=torch.bool, device=slots.device)  # padding must see something
        return (sees_text & text_order) | sees_speech | own
