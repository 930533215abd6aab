"""From a spoken query to a spoken reply, timed part by part."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from lightning_modules.talker.base import Talker
from lightning_modules.talker.streaming import SpeechChunk
from lightning_modules.thinker.thinker import Thinker, ThinkerToken
from lightning_modules.vocoder.base import Vocoder

_T = TypeVar("_T")


@dataclass(frozen=True)
class Decoding:
    """One way to decode: a talker and its steps a block."""

    talker: str
    num_steps: int


@dataclass
class PartTimes:
    """Seconds spent in each part of the system."""

    speech_encoder_s: float = 0.0
    thinker_s: float = 0.0
    talker_s: float = 0.0
    vocoder_s: float = 0.0

    def as_milliseconds(self) -> dict[str, float]:
        """Give the parts and their total, in ms, under the names of the paper's table."""
        parts = {name.removesuffix("_s"): 1000 * value for name, value in vars(self).items()}
        return {**parts, "total": sum(parts.values())}


@dataclass
class SpokenReply:
    """What the system answered, and what it cost.

    Attributes:
        text: The thinker's reply.
        speech_tokens: Codes, ``(T,) int64`` on the CPU.
        waveform: Samples, ``(S,) float32`` on the CPU.
        num_forwards: Talker forward passes of each block.
        ended: False if the talker was cut off before it said EOS.
        times: Seconds until the end of speech.
        first_chunk_times: Seconds until the first samples, out of ``times``.
        first_chunk_audio_s: Seconds of audio that the first chunk holds.
    """

    text: str = ""
    speech_tokens: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    waveform: Tensor = field(default_factory=lambda: torch.zeros(0))
    num_forwards: list[int] = field(default_factory=list)
    ended: bool = False
    times: PartTimes = field(default_factory=PartTimes)
    first_chunk_times: PartTimes = field(default_factory=PartTimes)
    first_chunk_audio_s: float = 0.0


class _StopWatch:
    """Times calls on a device whose kernels run asynchronously."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, call: Callable[[], _T]) -> tuple[_T, float]:
        start = self.now()
        result = call()
        return result, self.now() - start


@torch.no_grad()
def stream_spoken_reply(
    thinker: Thinker,
    talker: Talker,
    vocoder: Vocoder,
    query: Tensor,
    num_steps: int | None = None,
    max_text_tokens: int = 64,
    max_blocks: int = 32,
    reply: SpokenReply | None = None,
) -> Iterator[Tensor]:
    """Answer one query, yielding samples while the thinker is still writing.

    Args:
        thinker: Writes the reply.
        talker: Speaks it.
        vocoder: Turns speech tokens into samples.
        query: The spoken query, ``(S,) float32`` at 16 kHz.
        num_steps: Decoding steps a block; the talker's default if left out.
        max_text_tokens: Where the text is cut off.
        max_blocks: Where the speech is cut off.
        reply: Filled in place as the reply grows: text, tokens, samples, times.

    Yields:
        Samples of each chunk, ``(n,) float32``.
    """
    reply = reply if reply is not None else SpokenReply()
    watch = _StopWatch(query.device)
    token_ids: list[int] = []
    prompt, reply.times.speech_encoder_s = watch(lambda: thinker.encode(query))

    def timed_text() -> Iterator[ThinkerToken]:
        text = thinker.stream(prompt, max_text_tokens)
        while True:
            state, seconds = watch(lambda: next(text, None))
            reply.times.thinker_s += seconds
            if state is None:
                return
            token_ids.append(state.token_id)
            yield state

    text = timed_text()
    chunks = talker.stream(text, max_blocks, num_steps)
    session = vocoder.stream()
    while True:
        thinker_before = reply.times.thinker_s
        chunk, seconds = watch(lambda: next(chunks, None))
        if chunk is None:
            break
        reply.times.talker_s += seconds - (reply.times.thinker_s - thinker_before)
        samples, seconds = watch(lambda chunk=chunk: session.push(chunk.tokens, chunk.is_last))  # type: ignore[misc]
        reply.times.vocoder_s += seconds
        _append(reply, chunk, samples)
        if len(reply.num_forwards) == 1:
            reply.first_chunk_times = PartTimes(**vars(reply.times))
            reply.first_chunk_audio_s = len(samples) / vocoder.sample_rate
        yield samples
    for _ in text:
        pass  # The talker may end before the text: the rest of it belongs to the reply all the same.
    reply.text = thinker.decode(token_ids)


def _append(reply: SpokenReply, chunk: SpeechChunk, samples: Tensor) -> None:
    reply.speech_tokens = torch.cat([reply.speech_tokens, chunk.tokens.cpu()])
    reply.waveform = torch.cat([reply.waveform, samples.float().cpu()])
    reply.num_forwards.append(chunk.num_forwards)
    reply.ended = chunk.ended
