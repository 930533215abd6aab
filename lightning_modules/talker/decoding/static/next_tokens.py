"""A block of an autoregressive talker: one or several tokens per step, all steps in one function."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.sampling import NoiseOfSteps
from lightning_modules.talker.decoding.static.passes import put_together, taken_apart
from lightning_modules.talker.decoding.static.program import (
    Block,
    BlockFunction,
    BlockProgram,
    Carry,
    FlatFunction,
    Place,
    SpeechParts,
)
from lightning_modules.talker.network.decoding_network import Window
from lightning_modules.talker.network.key_value_cache import OpenLayer, StaticCache


class NextTokenProgram(BlockProgram):
    """Predicts as many tokens per step as there are backbones.

    The first step reads ``[late slots of the block before, anchor slots, first slot]``, each further one the slots of
    the tokens that the step before predicted. The carry is the tokens that were not read yet, ``(B, n) int64``.

    Args:
        parts: What decodes.
        decoding: How; its number of steps is given.
        max_blocks: Blocks of the longest reply.
    """

    def __init__(self, parts: SpeechParts, decoding: Decoding, max_blocks: int) -> None:
        super().__init__(parts, decoding, max_blocks)
        self.tokens_per_step = len(parts.backbones)
        assert self.num_steps == math.ceil(parts.block_size / self.tokens_per_step)
        self.num_read = 1 + (self.num_steps - 1) * self.tokens_per_step
        self.compiled_step: Callable[..., Tensor] | None = None
        self.layouts = {num_late: self._lay_out(num_late) for num_late in {0, parts.block_size - self.num_read}}

    @property
    def capacity(self) -> int:
        """Anchors and tokens of each block."""
        return self.max_blocks * (self.parts.anchors.anchors_per_block + self.parts.block_size)

    @property
    def num_drawings(self) -> int:
        """One for each backbone in each step; see :class:`BlockProgram`."""
        return self.num_steps * self.tokens_per_step

    def begin(self, batch_size: int) -> Carry:
        """Read BOS first; see :class:`BlockProgram`."""
        return (torch.full((batch_size, 1), self.parts.bos_id, device=self.device),)

    def num_slots(self, carry: Carry) -> int:
        """Count late slots, anchors and those that are read; see :class:`BlockProgram`."""
        return carry[0].shape[1] - 1 + self.parts.anchors.anchors_per_block + self.num_read

    def __call__(
        self,
        anchors: Tensor,
        carry: Carry,
        caches: Sequence[StaticCache],
        place: Place,
        noise: NoiseOfSteps | None = None,
    ) -> Block:
        """Predict the tokens of a block; see :class:`BlockProgram`."""
        (unread,) = carry
        num_late, block_size = unread.shape[1] - 1, self.parts.block_size
        sizes = [num_late + anchors.shape[1] + 1] + [self.tokens_per_step] * (self.num_steps - 1)
        windows = [window.split(sizes) for window in self.windows(place, *self.layouts[num_late])]
        opened = [cache.open(place.num_keys) for cache in caches]
        late, first = self.embed(unread).split([num_late, 1], dim=1)
        x = torch.cat([late, self.anchor_slots(anchors), first], dim=1)
        predicted: list[Tensor] = []
        ended: set[int] = set()
        run_step = self.compiled_step or self.step
        for step in range(self.num_steps):
            drawings = range(step * self.tokens_per_step, (step + 1) * self.tokens_per_step)
            drawn = None if noise is None else [noise[drawing] for drawing in drawings]
            x = run_step(x, [own[step] for own in windows], opened, drawn)
            predicted.append(x)
            if self.looks_inside:
                ended |= {row for row, own in enumerate(x.tolist()) if self.parts.eos_id in own}
                if len(ended) == len(unread):
                    break
        spoken = torch.cat(predicted, dim=1)[:, :block_size]
        return Block(spoken, None, (spoken[:, self.num_read - 1 :],), self.num_slots(carry), len(predicted))

    def step(
        self,
        x: Tensor,
        windows: Sequence[Window],
        opened: Sequence[list[OpenLayer]],
        noise: Sequence[Tensor] | None,
    ) -> Tensor:
        """Predict the next tokens.

        Args:
            x: What the slots read: embedded, ``(B, L, width)``, or the tokens before them, ``(B, L) int64``.
            windows: Of each backbone.
            opened: The cache of each backbone.
            noise: For each of the tokens; None if nothing is drawn.

        Returns:
            ``(B, tokens_per_step) int64``.
        """
        x = x if x.is_floating_point() else self.embed(x)
        tokens = []
        for ahead, network in enumerate(self.networks):
            is_last = ahead == len(self.networks) - 1
            x = network(x, windows[ahead], opened[ahead], 1 if is_last else x.shape[1])
            drawn = None if noise is None else noise[ahead]
            tokens.append(self.sampler.choose(self.predict(x if is_last else x[:, -1:]), drawn))
        return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)

    def compiled(self, compiler: Callable[[FlatFunction], FlatFunction]) -> BlockFunction:
        """Compile the first step and the further ones, each a function; see :class:`BlockProgram`."""
        self.write_out()
        sizes = [len(network.layers) for network in self.networks]

        def flat(x: Tensor, *inputs: Tensor, num_keys: int) -> tuple[tuple[Tensor, ...], None]:
            windows, opened, rest = put_together(inputs, sizes, num_keys)
            return (self.step(x, windows, opened, rest or None),), None

        run = compiler(flat)

        def run_step(
            x: Tensor,
            windows: Sequence[Window],
            opened: Sequence[list[OpenLayer]],
            noise: Sequence[Tensor] | None,
        ) -> Tensor:
            num_keys = opened[0][0].keys.shape[2]
            (tokens,), _ = run(x, *taken_apart(windows, opened), *(noise or ()), num_keys=num_keys)
            return tokens

        self.compiled_step = run_step
        return self

    def _lay_out(self, num_late: int) -> tuple[Tensor, Tensor]:
        """Give offset and reach of each slot of a block."""
        num_anchors = self.parts.anchors.anchors_per_block
        late, of_anchors, tokens = (torch.arange(n) for n in (num_late, num_anchors, self.num_read))
        offsets = torch.cat([late - num_late, of_anchors, tokens])
        num_before = num_late + num_anchors
        reach = torch.cat([late + 1, torch.full_like(of_anchors, num_before), num_before + 1 + tokens])
        return offsets.to(self.device), reach.to(self.device)
