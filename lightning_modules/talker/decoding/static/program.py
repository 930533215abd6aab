"""What decodes one block as a function of tensors: its parts, its inputs, its result."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.sampling import NoiseOfSteps, TokenSampler
from lightning_modules.talker.network.anchors import SemanticAnchors
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.network.decoding_network import (
    DecodingNetwork,
    Window,
    as_scores,
    written_product,
)
from lightning_modules.talker.network.key_value_cache import StaticCache
from lightning_modules.talker.network.packed_linear import is_plain_linear
from lightning_modules.talker.network.token_coupling import TokenCoupling

SLOTS_OF_FAST_KERNELS = 8  # 16 bytes of a mask in 16 bits


@dataclass(frozen=True)
class SpeechParts:
    """The parts of a talker that decode.

    Attributes:
        anchors: Say how many anchors a block has, and what stands where there is none.
        backbones: Predict the next token, then one for each token behind it.
        embed_tokens: Embeds speech tokens and special ones.
        head: Gives logits.
        block_size: Tokens per block.
        bos_id: Read before the first token.
        mask_id: The mask.
        eos_id: End of speech.
        num_outputs: Tokens that can be predicted.
        coupling: Lets masked tokens that are predicted in one pass depend on each other; None if they do not.
    """

    anchors: SemanticAnchors
    backbones: Sequence[TalkerBackbone]
    embed_tokens: nn.Embedding
    head: nn.Module
    block_size: int
    bos_id: int
    mask_id: int
    eos_id: int
    num_outputs: int
    coupling: TokenCoupling | None = None


def round_up(num_slots: int) -> int:
    """Round a length of attention up, so that each row of its mask begins where fast kernels of a GPU can read it."""
    return -(-num_slots // SLOTS_OF_FAST_KERNELS) * SLOTS_OF_FAST_KERNELS


class Place(NamedTuple):
    """Where a block stands in speech and cache: numbers, or int64 scalars on the device.

    Attributes:
        start: Slots of the cache that are committed.
        position: Position of the block's first token.
        num_keys: Slots that attention looks at, at least those that the block writes to; a number, always.
    """

    start: int | Tensor
    position: int | Tensor
    num_keys: int


# What a block hands on to the next one, rows first.
Carry = tuple[Tensor, ...]


class Block(NamedTuple):
    """A decoded block.

    Attributes:
        tokens: ``(B, n) int64``, anything behind the first EOS of a row.
        order: Step that revealed each token, from 0, ``(B, n) int64``; None where they come one by one.
        carry: For the next block.
        num_committed: Slots of the cache that it committed.
        num_forwards: Passes of the network.
        draft: Tokens before they were corrected, ``(B, n) int64``; None if nothing corrects them.
    """

    tokens: Tensor
    order: Tensor | None
    carry: Carry
    num_committed: int
    num_forwards: int
    draft: Tensor | None = None


# Takes tensors, and numbers by name; gives tensors, and what else follows from shapes and numbers alone.
FlatFunction = Callable[..., tuple[tuple[Tensor, ...], Any]]
# Decodes a block as a program does.
BlockFunction = Callable[[Tensor, Carry, Sequence[StaticCache], Place, NoiseOfSteps | None], Block]


class BlockProgram(ABC):
    """Decodes a block of many rows that stand at the same place, each with a text of its own.

    A program keeps nothing of what it decoded. Nothing in it waits for the device unless :attr:`looks_inside` is set;
    without, a block takes as many steps as it may.

    Args:
        parts: What decodes.
        decoding: How; its number of steps is given.
        max_blocks: Blocks of the longest reply.

    Attributes:
        looks_inside: Whether the host may look at tokens within a block, to end it early. It costs nothing on a CPU.
    """

    def __init__(self, parts: SpeechParts, decoding: Decoding, max_blocks: int) -> None:
        assert decoding.num_steps is not None
        self.parts, self.decoding, self.max_blocks = parts, decoding, max_blocks
        self.num_steps = decoding.num_steps
        self.sampler = decoding.sampler or TokenSampler()
        self.networks = [DecodingNetwork(one, max_blocks * parts.block_size) for one in parts.backbones]
        self.device, self.dtype = self.networks[0].device, self.networks[0].dtype
        self.embed = parts.embed_tokens
        self.predict = as_scores(parts.head, self.networks[0].cast_to)
        self.looks_inside = self.device.type == "cpu"
        self._key_slots = torch.arange(self.num_cached, device=self.device)

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Slots of the cache of the longest reply."""

    @property
    def num_cached(self) -> int:
        """Slots that the cache is allocated with."""
        return round_up(self.capacity)

    @property
    def is_one_function(self) -> bool:
        """Whether a block takes the same passes whatever its tokens are, if nobody looks inside."""
        return True

    @property
    def commits_itself(self) -> bool:
        """Whether a block may leave nothing to commit, so that the next one begins as the first one does."""
        return False

    @property
    def is_plain(self) -> bool:
        """Whether it may be compiled: all layers are plain ones, without adapters."""
        return (
            (self.parts.coupling is None or self.parts.coupling.is_plain)
            and is_plain_linear(self.parts.head)
            and all(network.is_plain for network in self.networks)
        )

    @property
    def weights(self) -> list[Tensor]:
        """All weights of its parts."""
        parts = self.parts.anchors, *self.parts.backbones, self.parts.embed_tokens, self.parts.head, self.parts.coupling
        return [weight for part in parts if part is not None for weight in part.parameters()]

    @property
    def num_drawings(self) -> int:
        """How often tokens are drawn in a block, at most."""
        return self.num_steps

    @property
    def rows_of_noise(self) -> int:
        """Positions whose tokens are drawn at a time."""
        return 1

    @abstractmethod
    def begin(self, batch_size: int) -> Carry:
        """Give what the first block reads of those before it."""

    @abstractmethod
    def num_slots(self, carry: Carry) -> int:
        """Count the slots that the next block writes to, at most."""

    @abstractmethod
    def __call__(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None = None,
    ) -> Block:
        """Decode a block.

        Args:
            anchors: ``(B, Q, width)``.
            carry: What the block before handed on.
            caches: One per backbone; written to.
            place: Where the block stands.
            noise: For each drawing of tokens; None if nothing is drawn.
        """

    def compiled(self, compiler: Callable[[FlatFunction], FlatFunction]) -> BlockFunction:
        """Give what decodes a block as a call does, as one function that a compiler made; weights are as they are now.

        Args:
            compiler: Makes a function of tensors faster.
        """
        self.write_out()
        num_carried = len(self.begin(1))

        def flat(*inputs: Tensor, num_keys: int, num_buffers: int) -> tuple[tuple[Tensor, ...], Block]:
            anchors, start, position, *rest = inputs
            carry, rest = tuple(rest[:num_carried]), rest[num_carried:]
            caches = [StaticCache(rest[:num_buffers])]
            noise = rest[num_buffers:] or None
            block = self(anchors, carry, caches, Place(start, position, num_keys), noise)
            assert block.draft is None, "corrections are no single function"
            tensors = block.tokens, *block.carry, *(() if block.order is None else (block.order,))
            nothing = anchors.new_empty(0)
            return tensors, block._replace(tokens=nothing, carry=(), order=None)

        run = compiler(flat)

        def decode(
            anchors: Tensor,
            carry: Carry,
            caches: Sequence[StaticCache],
            place: Place,
            noise: NoiseOfSteps | None,
        ) -> Block:
            (cache,) = caches
            where = (torch.as_tensor(one, device=self.device) for one in (place.start, place.position))
            inputs = anchors, *where, *carry, *cache.buffers, *(draw(noise, self.num_drawings) or ())
            (tokens, *rest), block = run(*inputs, num_keys=place.num_keys, num_buffers=len(cache.buffers))
            order = rest[num_carried] if len(rest) > num_carried else None
            return block._replace(tokens=tokens, carry=tuple(rest[:num_carried]), order=order)

        return decode

    def write_out(self) -> None:
        """Write products in operators that a compiler fuses, with weights as they are now."""
        for network in self.networks:
            network.write_out()
        self.predict = written_product(self.parts.head, self.networks[0].cast_to) or self.predict

    def commit(self, carry: Carry, caches: Sequence[StaticCache], place: Place) -> tuple[Carry, int]:
        """Write in a pass of its own what the next block would commit on its way.

        Returns:
            What is left to hand on, and how many slots were committed; 0 if there was nothing to do.
        """
        return carry, 0

    def new_caches(self, batch_size: int) -> list[StaticCache]:
        """Allocate a cache for each backbone."""
        return [network.new_cache(batch_size, self.num_cached) for network in self.networks]

    def windows(self, place: Place, offsets: Tensor, reach: Tensor) -> list[Window]:
        """Lay new positions behind the committed ones, a window for each backbone.

        Args:
            place: Where the block stands.
            offsets: Position of each relative to the block's first token, ``(L,) int64``.
            reach: How many of the new slots, from the first on, each may attend to, ``(L,) int64``.
        """
        slots = self._key_slots[: len(offsets)] + place.start
        mask, positions = self.mask(place, reach), offsets + place.position
        start = None if isinstance(place.start, Tensor) else place.start
        return [network.window(slots, positions, mask, start) for network in self.networks]

    def mask(self, place: Place, reach: Tensor) -> Tensor:
        """Give what is added to the scores of new positions, ``(L, num_keys)``; arguments as of :meth:`windows`."""
        hidden = self._key_slots[: place.num_keys] >= (reach + place.start)[:, None]
        return torch.zeros_like(hidden, dtype=self.dtype).masked_fill_(hidden, -torch.inf)

    def anchor_slots(self, anchors: Tensor) -> Tensor:
        """Embed anchors as slots of their own, ``(B, Q, width)``."""
        return anchors + self.embed.weight[self.parts.mask_id]


def draw(noise: NoiseOfSteps | None, num_drawings: int) -> list[Tensor] | None:
    """Draw the first noise of a block before it runs."""
    return None if noise is None else [noise[drawing] for drawing in range(num_drawings)]
