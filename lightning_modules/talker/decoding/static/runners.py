"""How a program is run: as it is, or as functions that are made for a few lengths of attention."""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.talker.decoding.sampling import NoiseOfSteps
from lightning_modules.talker.decoding.static.program import Block, BlockProgram, Carry, Place, draw, round_up
from lightning_modules.talker.network.key_value_cache import StaticCache

MIN_BUCKET = 64


class BlockRunner(ABC):
    """Runs a program.

    Args:
        program: What is run.

    Attributes:
        drops_rows: Whether the rows of a decoding may become fewer.
        runs_ahead: Whether the device decodes a whole block while the host goes on.
    """

    drops_rows, runs_ahead = True, False

    def __init__(self, program: BlockProgram) -> None:
        self.program = program

    def new_caches(self, batch_size: int) -> list[StaticCache]:
        """Give the caches of a new decoding."""
        return self.program.new_caches(batch_size)

    @abstractmethod
    def num_keys(self, num_slots: int) -> int:
        """Say how many slots attention looks at, at least ``num_slots``."""

    @abstractmethod
    def __call__(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None,
    ) -> Block:
        """Decode a block; see :class:`BlockProgram`."""


class EagerRunner(BlockRunner):
    """Runs a program as it is, with attention over no more slots than there are, apart from a few on a GPU."""

    def num_keys(self, num_slots: int) -> int:
        """Give the slots themselves; on a GPU the next number that its kernels can read."""
        return num_slots if self.program.device.type == "cpu" else round_up(num_slots)

    def __call__(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None,
    ) -> Block:
        """Decode a block; see :class:`BlockProgram`."""
        with torch.inference_mode():
            block = self.program(anchors, carry, caches, place, noise)
        # What leaves may be written to and trained on; the carry only comes back.
        order, draft = (None if one is None else one.clone() for one in (block.order, block.draft))
        return block._replace(tokens=block.tokens.clone(), order=order, draft=draft)


class FixedShapeRunner(BlockRunner):
    """Runs a program whose blocks, or steps, are functions made for one number of rows and a few lengths of attention.

    Args:
        program: What is run; the host looks at nothing within its blocks from then on, unless they end early by rule.
    """

    drops_rows = False  # another number of rows is another function

    def __init__(self, program: BlockProgram) -> None:
        super().__init__(program)
        program.looks_inside = not program.is_one_function

    def num_keys(self, num_slots: int) -> int:
        """Give one of a few lengths."""
        return bucket_of(num_slots, self.program.num_cached)

    def draw(self, noise: NoiseOfSteps | None) -> list[Tensor] | None:
        """Draw all noise of a block before it runs."""
        return draw(noise, self.program.num_drawings)

    def in_own_precision(self, anchors: Tensor) -> Tensor:
        """Give projected text in the precision of the weights, for which functions are made.

        Under autocast text is projected to a lower precision, and "no text", behind the text's end, is not.
        """
        return anchors.to(self.program.embed.weight.dtype)


class OwnCachesRunner(FixedShapeRunner):
    """Runs a program over caches of its own: one decoding at a time, and the next one writes over what it left.

    Args:
        program: What is run.
        batch_size: Rows of each decoding.
    """

    def __init__(self, program: BlockProgram, batch_size: int) -> None:
        super().__init__(program)
        self.batch_size, self.caches = batch_size, program.new_caches(batch_size)
        self._lent: Sequence[StaticCache] = []

    def new_caches(self, batch_size: int) -> list[StaticCache]:
        """Lend the only caches to a new decoding, which ends the one before; see :class:`BlockRunner`."""
        assert batch_size == self.batch_size, f"captured for {self.batch_size} rows, not {batch_size}"
        lent = list(self.caches)
        self._lent = lent
        return lent

    def check_turn(self, caches: Sequence[StaticCache]) -> None:
        """Refuse to go on with a decoding behind the begin of another one.

        Raises:
            RuntimeError: If these are not the caches that were lent last.
        """
        if caches is not self._lent:
            raise RuntimeError("another reply of this decoding has begun: finish one first, or decode a batch")


def bucket_of(num_slots: int, capacity: int) -> int:
    """Round a length of attention up to 64 times a power of two, or to the whole cache, so that few lengths come up."""
    bucket = MIN_BUCKET
    while bucket < num_slots:
        bucket *= 2
    return min(bucket, capacity)


def cpp_compiler() -> str:
    """Give the command of the C++ compiler that torch.compile calls on a CPU."""
    return os.environ.get("CXX", "g++")


def has_compiler() -> bool:
    """Tell whether there is a C++ compiler."""
    return shutil.which(cpp_compiler()) is not None
