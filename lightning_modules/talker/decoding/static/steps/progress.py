"""What the steps of a block read and write, and what runs them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from lightning_modules.talker.decoding.sampling import NoiseOfSteps
from lightning_modules.talker.decoding.static.program import Carry, Place
from lightning_modules.talker.network.decoding_network import Window
from lightning_modules.talker.network.key_value_cache import OpenLayer, StaticCache


class BlockInWork(NamedTuple):
    """What the passes of one block share; nothing of it changes until the block is done.

    Attributes:
        beside: What the block's own slots read beside its tokens, as the layout has it, ``(B, ...)``.
        rest: Window of the passes behind the first one, in which the block attends to all of itself.
        causal: Window of the same slots, of which each attends to no later one; None if nothing is corrected.
        opened: The cache.
        num_lead: Slots ahead of the block that its first pass commits.
    """

    beside: Tensor
    rest: Window
    causal: Window | None
    opened: list[OpenLayer]
    num_lead: int


class Progress(NamedTuple):
    """How far a block is.

    Attributes:
        tokens: ``(B, block_size) int64``.
        order: Step that revealed or corrected each token, from 0, ``(B, block_size) int64``.
        is_open: Whether tokens are masked, or the last correcting pass changed one: a bool on the device. A step behind
            one that leaves it false changes nothing. None where all steps are taken whatever the tokens are.
    """

    tokens: Tensor
    order: Tensor
    is_open: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its tensors, as many as there are."""
        return tuple(one for one in self if one is not None)


class BlockPasses(Protocol):
    """Runs the passes of a block, none of which waits for the device. The host looks at ``is_open`` between them."""

    def start(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None,
    ) -> tuple[Progress, BlockInWork]:
        """Take all steps that a block takes in any case: one, or those of a draft; see :class:`BlockProgram`."""
        ...

    def unmask_more(self, progress: Progress, work: BlockInWork, step: int | Tensor, noise: Tensor | None) -> Progress:
        """Take a further step of an adaptive rule, which changes nothing if nothing is masked.

        Args:
            progress: What the step before gave.
            work: What :meth:`start` gave.
            step: Its number, from 1.
            noise: Of this step; None if nothing is drawn.
        """
        ...

    def correct(self, progress: Progress, work: BlockInWork, step: int | Tensor) -> Progress:
        """Replace the first token of each row that is not the most probable next one; arguments as above."""
        ...
