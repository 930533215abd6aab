"""The stages behind a thinker: text tokens to blocks of speech tokens to samples."""

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.inference.clocks import Clock, StopWatch, Timed, Waiting
from lightning_modules.inference.pipelines import Pipeline
from lightning_modules.inference.timeline import TALKER, THINKER, VOCODER, Delivery, Timeline
from lightning_modules.talker.decoding.streaming import SpeechChunk, TextState
from lightning_modules.vocoder.base import VocoderStream


class SpokenBlock(NamedTuple):
    """One block of a reply.

    Attributes:
        chunk: Its speech tokens.
        num_text_tokens: Text tokens that the talker had read when it was decoded.
        samples: What the vocoder made of it, ``(n,) float32``; it may wait for more.
    """

    chunk: SpeechChunk
    num_text_tokens: int
    samples: Tensor


@torch.no_grad()
def run_stages(
    text: Iterator[TextState],
    speak: Callable[[Iterator[TextState]], Iterator[SpeechChunk]],
    session: VocoderStream,
    pipeline: Pipeline,
    timeline: Timeline,
    clock: Clock,
    watch: StopWatch,
) -> Generator[SpokenBlock]:
    """Speak a text while it is written, and write down when each stage was at work.

    Args:
        text: Text states, each written when it is asked for; it writes down its own work.
        speak: Makes blocks of speech tokens of text states.
        session: Turns them into samples.
        pipeline: How the stages are joined.
        timeline: Filled in place.
        clock: Of this reply, from the pipeline.
        watch: Reads the time on the device.

    Yields:
        Blocks in their order. Behind the last one, the text is written to its end: speech may end before it.
    """
    with pipeline.open(watch.device) as join:
        tokens = Waiting(join(THINKER, text), watch)
        decoded = Timed(TALKER, _count_text(speak(tokens), tokens), timeline, clock, watch, tokens)
        chunks = Waiting(join(TALKER, decoded), watch)
        blocks = join(VOCODER, Timed(VOCODER, _make_samples(chunks, session), timeline, clock, watch, chunks))
        for block in blocks:
            timeline.deliveries.append(Delivery(block.num_text_tokens, clock.now()))
            yield block
        for _ in tokens:
            pass


def _count_text(chunks: Iterator[SpeechChunk], tokens: Waiting) -> Iterator[tuple[SpeechChunk, int]]:
    for chunk in chunks:
        yield chunk, tokens.num_items


@torch.no_grad()
def _make_samples(chunks: Iterator[tuple[SpeechChunk, int]], session: VocoderStream) -> Iterator[SpokenBlock]:
    for chunk, num_text_tokens in chunks:
        yield SpokenBlock(chunk, num_text_tokens, session.push(chunk.tokens, chunk.is_last))
