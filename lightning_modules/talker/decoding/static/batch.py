"""Decodes many replies at once, each until it ends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.talker.decoding.static.decoder import StaticDecoder
from lightning_modules.talker.decoding.streaming import SpeechChunk, cut_at_eos


@dataclass(frozen=True)
class BatchedReply:
    """One reply of a batch.

    Attributes:
        tokens: Codes without any special token, ``(n,) int64``.
        num_forwards: Passes of the network in each of its blocks; a batch takes as many as its slowest row.
        ended: False if it was cut off before EOS.
        order: Step of its block that revealed each token, from 0, ``(n,) int64``; None where they come one by one.
        draft: The tokens before they were corrected, ``(n,) int64``; None where ``order`` is.
    """

    tokens: Tensor
    num_forwards: list[int]
    ended: bool
    order: Tensor | None = None
    draft: Tensor | None = None

    @classmethod
    def of(cls, stream: Iterable[SpeechChunk]) -> "BatchedReply":
        """Collect the chunks of a reply that was decoded alone."""
        chunks = list(stream)
        orders = [chunk.order for chunk in chunks if chunk.order is not None]
        tokens = torch.cat([chunk.tokens for chunk in chunks])
        num_forwards = [chunk.num_forwards for chunk in chunks]
        drafts = [chunk.tokens if chunk.draft is None else chunk.draft for chunk in chunks]
        order, draft = (torch.cat(orders), torch.cat(drafts)) if orders else (None, None)
        return cls(tokens, num_forwards, chunks[-1].ended, order, draft)


@torch.no_grad()
def decode_batch(decoder: StaticDecoder, anchors: Tensor, eos_id: int) -> list[BatchedReply]:
    """Decode each row until EOS, or through all blocks.

    The host looks at the tokens once per block. Rows that ended are dropped as soon as they are half of those that are
    left.

    Args:
        decoder: Of as many rows.
        anchors: ``(B, K, Q, width)``.
        eos_id: End of speech.

    Returns:
        One reply per row.
    """
    blocks: list[list[Tensor]] = [[] for _ in anchors]
    orders: list[list[Tensor]] = [[] for _ in anchors]
    drafts: list[list[Tensor]] = [[] for _ in anchors]
    num_forwards: list[list[int]] = [[] for _ in anchors]
    rows, running = list(range(len(anchors))), set(range(len(anchors)))
    num_blocks = anchors.shape[1]
    for index in range(num_blocks):
        block = decoder.decode(anchors[rows, index] if len(rows) < len(anchors) else anchors[:, index])
        passes = block.num_forwards
        has_eos = (block.tokens == eos_id).any(dim=1).tolist()
        for place, row in enumerate(rows):
            if row in running:
                blocks[row].append(block.tokens[place])
                if block.order is not None:
                    orders[row].append(block.order[place])
                    drafts[row].append((block.tokens if block.draft is None else block.draft)[place])
        still = {row for row, ends in zip(rows, has_eos, strict=True) if row in running and not ends}
        if still and index < num_blocks - 1:
            passes += decoder.close_block()
        for row in running:
            num_forwards[row].append(passes if row in still else block.num_forwards)
        running = still
        if not running:
            break
        if decoder.runner.drops_rows and 2 * len(running) <= len(rows):
            kept = [place for place, row in enumerate(rows) if row in running]
            decoder.keep(kept)
            rows = [rows[place] for place in kept]
    return [_reply(*parts, eos_id) for parts in zip(blocks, orders, drafts, num_forwards, strict=True)]


def _reply(
    blocks: Sequence[Tensor], orders: Sequence[Tensor], drafts: Sequence[Tensor], num_forwards: list[int], eos_id: int
) -> BatchedReply:
    tokens, ended = cut_at_eos(torch.cat(list(blocks)), eos_id)
    order, draft = (torch.cat(list(steps))[: len(tokens)] if steps else None for steps in (orders, drafts))
    return BatchedReply(tokens, num_forwards, ended, order, draft)
