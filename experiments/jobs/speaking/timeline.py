"""When the parts of a reply were there: text tokens, blocks of speech tokens, samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from torch import Tensor

from lightning_modules.inference.responder import Responder
from lightning_modules.inference.spoken_reply import SpokenReply, ThinkerText
from lightning_modules.inference.timeline import TALKER, THINKER
from lightning_modules.talker.decoding.decoding import Decoding


@dataclass(frozen=True)
class BlockTimes:
    """One block of a reply; times in seconds since the end of the query.

    Attributes:
        text: What the talker read for this block and not before; empty behind the end of the text.
        num_text_tokens: Tokens of this text.
        num_speech_tokens: Speech tokens that the block holds.
        num_forwards: Talker passes that it took.
        text_s: When the text was written.
        tokens_s: When the speech tokens were decoded.
        samples_s: When the samples were handed over.
        audio_start_s: Where the samples begin in the reply.
        audio_end_s: Where they end; a vocoder may give them later than their tokens.
    """

    text: str
    num_text_tokens: int
    num_speech_tokens: int
    num_forwards: int
    text_s: float
    tokens_s: float
    samples_s: float
    audio_start_s: float
    audio_end_s: float


def stream_with_times(
    responder: Responder, text: ThinkerText, decoding: Decoding, reply: SpokenReply
) -> Iterator[tuple[Tensor, BlockTimes]]:
    """Speak the answer to one query chunk by chunk, each with its times; see :class:`Timeline`.

    Args:
        responder: Answers.
        text: What the thinker answers, nothing of it read yet.
        decoding: Which talker speaks, and how.
        reply: Filled in place as the reply grows.

    Yields:
        Samples ``(n,) float32`` and times of each block.
    """
    timeline, rate = reply.timeline, responder.vocoder.sample_rate
    so_far, num_texts, num_tokens, num_samples = "", 0, 0, 0
    with closing(responder.stream(text, decoding, reply)) as chunks:
        for block, samples in enumerate(chunks):
            delivery, talker = timeline.deliveries[block], timeline.of(TALKER)[block]
            num_new = delivery.num_text_tokens - num_texts
            # a block without a text of its own waits for nobody
            text_s = timeline.of(THINKER)[delivery.num_text_tokens - 1].end_s if num_new else talker.start_s
            times = BlockTimes(
                text=reply.text[len(so_far) :],
                num_text_tokens=num_new,
                num_speech_tokens=len(reply.speech_tokens) - num_tokens,
                num_forwards=reply.num_forwards[-1],
                text_s=text_s,
                tokens_s=talker.end_s,
                samples_s=delivery.at_s,
                audio_start_s=num_samples / rate,
                audio_end_s=(num_samples + len(samples)) / rate,
            )
            so_far, num_texts = reply.text, delivery.num_text_tokens
            num_tokens, num_samples = len(reply.speech_tokens), num_samples + len(samples)
            yield samples, times


def longest_gap_s(blocks: list[BlockTimes]) -> float:
    """Give how long a listener who plays each block when it comes would hear nothing, at most between two blocks."""
    plays_until, longest = None, 0.0
    for block in blocks:
        if block.audio_end_s == block.audio_start_s:
            continue
        if plays_until is not None:
            longest = max(longest, block.samples_s - plays_until)
        plays_until = max(block.samples_s, plays_until or 0.0) + block.audio_end_s - block.audio_start_s
    return longest


def lay_out(blocks: list[BlockTimes]) -> str:
    """Lay blocks out as a table, one line each."""
    header = ("block", "text", "text at", "speech tokens", "passes", "tokens at", "samples at", "audio")
    lines = [header]
    for number, block in enumerate(blocks):
        audio = f"{block.audio_start_s:.2f} to {block.audio_end_s:.2f} s"
        lines.append(
            (
                str(number),
                f"{block.text.strip()} ({block.num_text_tokens})" if block.num_text_tokens else "-",
                f"{1000 * block.text_s:.0f} ms",
                str(block.num_speech_tokens),
                str(block.num_forwards),
                f"{1000 * block.tokens_s:.0f} ms",
                f"{1000 * block.samples_s:.0f} ms",
                audio if block.audio_end_s > block.audio_start_s else "-",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
