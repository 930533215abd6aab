"""Ways to run one and the same decoding: what differs between them is time, not tokens."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.streaming import SpeechChunk, TextState

# Gives the speech of a text of as many blocks as it was prepared for, chunk by chunk.
Runner = Callable[[Iterable[TextState]], Iterator[SpeechChunk]]


class Execution(Protocol):
    """A way to run decodings."""

    def prepare(self, talker: Talker, decoding: Decoding, num_blocks: int) -> Runner | None:
        """Make what decodes replies of so many blocks; it may compile, capture or pack weights.

        Args:
            talker: A talker in evaluation mode, which other executions use, too.
            decoding: How it decodes.
            num_blocks: Blocks of each reply.

        Returns:
            What runs; None if this execution does not know such a talker or decoding.
        """
        ...


@dataclass(frozen=True)
class Eager:
    """The talkers' own code, operator by operator: the reference for all others.

    Attributes:
        autocast: Compute in bfloat16 with weights as they are, as the quickstart's comparison does.
    """

    autocast: bool = False

    def prepare(self, talker: Talker, decoding: Decoding, num_blocks: int) -> Runner | None:
        """Run :meth:`Talker.stream`; see :class:`Execution`."""
        device = next(talker.parameters()).device.type

        def run(text: Iterable[TextState]) -> Iterator[SpeechChunk]:
            with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
                yield from talker.stream(text, num_blocks, decoding)

        return run
