"""From a spoken query to a spoken reply, timed part by part."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from lightning_modules.dialogue import History
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.streaming import SpeechChunk
from lightning_modules.thinker.thinker import Thinker, ThinkerToken
from lightning_modules.vocoder.base import Vocoder

_T = TypeVar("_T")


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
        order: Step of its block that revealed each speech token, from 0, ``(T,) int64`` on the CPU; empty if the talker
            reveals them one by one.
        draft: Codes before they were corrected, ``(T,) int64`` on the CPU; empty where
            ``order`` is.
    """

    text: str = ""
    speech_tokens: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    waveform: Tensor = field(default_factory=lambda: torch.zeros(0))
    num_forwards: list[int] = field(default_factory=list)
    ended: bool = False
    times: PartTimes = field(default_factory=PartTimes)
    first_chunk_times: PartTimes = field(default_factory=PartTimes)
    first_chunk_audio_s: float = 0.0
    order: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    draft: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @property
    def is_timed(self) -> bool:
        """Whether it was spoken alone, and so timed; in a batch nothing is."""
        return self.times.talker_s > 0


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


class ThinkerText:
    """What a thinker answers to one query: written while it is read, and kept to be read again.

    Args:
        thinker: Writes the reply.
        query: The spoken query, ``(S,) float32`` at 16 kHz.
        max_text_tokens: Where the text is cut off.
        history: What was said before the query; None if the dialogue begins with it.

    Attributes:
        num_dropped_turns: Oldest turns that the context had no room for.
    """

    def __init__(
        self, thinker: Thinker, query: Tensor, max_text_tokens: int = 64, history: History | None = None
    ) -> None:
        self.thinker, self.watch = thinker, _StopWatch(query.device)
        with torch.no_grad():
            prompt, self.speech_encoder_s = self.watch(lambda: thinker.encode(query, history, max_text_tokens))
        self.num_dropped_turns = prompt.num_dropped_turns
        self._stream = thinker.stream(prompt, max_text_tokens)
        self.states: list[ThinkerToken | None] = []
        self.token_s: list[float] = []

    @torch.no_grad()
    def write_next(self) -> float:
        """Write one more token, or None behind the last one; gives the seconds that it took."""
        state, seconds = self.watch(lambda: next(self._stream, None))
        self.states.append(state)
        self.token_s.append(seconds)
        return seconds

    def decode(self) -> str:
        """Give what was written so far as text."""
        return self.thinker.decode([state.token_id for state in self.states if state is not None])


class TextReading(Iterator[ThinkerToken]):
    """Reads a thinker's text from its beginning, and lets it write on where it ends.

    Attributes:
        thinker_s: Seconds that the thinker took for what was read, now or when it was first read.
        waited_s: Seconds of these that passed now.
    """

    def __init__(self, text: ThinkerText) -> None:
        self.text, self.position = text, 0
        self.thinker_s = self.waited_s = 0.0

    def __next__(self) -> ThinkerToken:
        """Give the next token."""
        if self.position and self.text.states[self.position - 1] is None:
            raise StopIteration
        if self.position == len(self.text.states):
            self.waited_s += self.text.write_next()
        self.thinker_s += self.text.token_s[self.position]
        self.position += 1
        state = self.text.states[self.position - 1]
        if state is None:
            raise StopIteration
        return state


@torch.no_grad()
def stream_spoken_reply(
    text: ThinkerText,
    talker: Talker,
    vocoder: Vocoder,
    decoding: Decoding,
    max_blocks: int = 32,
    reply: SpokenReply | None = None,
) -> Iterator[Tensor]:
    """Answer one query, yielding samples while the thinker is still writing.

    Args:
        text: What the thinker answers. If it was read before, its times count as if it were written now.
        talker: Speaks it.
        vocoder: Turns speech tokens into samples.
        decoding: How it does that.
        max_blocks: Where the speech is cut off.
        reply: Filled in place as the reply grows: text, tokens, samples, times.

    Yields:
        Samples of each chunk, ``(n,) float32``.
    """
    reply = reply if reply is not None else SpokenReply()
    reply.times.speech_encoder_s = text.speech_encoder_s
    reading, session, watch = TextReading(text), vocoder.stream(), text.watch
    chunks = talker.stream(reading, max_blocks, decoding)
    while True:
        waited_before = reading.waited_s
        chunk, seconds = watch(lambda: next(chunks, None))
        reply.times.thinker_s = reading.thinker_s
        if chunk is None:
            break
        reply.times.talker_s += seconds - (reading.waited_s - waited_before)
        samples, seconds = watch(lambda chunk=chunk: session.push(chunk.tokens, chunk.is_last))  # type: ignore[misc]
        reply.times.vocoder_s += seconds
        _append(reply, chunk, samples)
        # A vocoder may wait for more tokens than the first block has; a reply of no samples is timed to its end.
        if not reply.first_chunk_audio_s and (len(samples) or chunk.is_last):
            reply.first_chunk_times = PartTimes(**vars(reply.times))
            reply.first_chunk_audio_s = len(samples) / vocoder.sample_rate
        yield samples
    for _ in reading:
        pass  # The talker may end before the text: the rest of it belongs to the reply all the same.
    reply.times.thinker_s = reading.thinker_s
    reply.text = text.decode()


def _append(reply: SpokenReply, chunk: SpeechChunk, samples: Tensor) -> None:
    reply.speech_tokens = torch.cat([reply.speech_tokens, chunk.tokens.cpu()])
    reply.waveform = torch.cat([reply.waveform, samples.float().cpu()])
    reply.num_forwards.append(chunk.num_forwards)
    if chunk.order is not None:
        reply.order = torch.cat([reply.order, chunk.order.cpu()])
        # Blocks without a correcting pass stand as they were drafted, beside others that were corrected.
        reply.draft = torch.cat([reply.draft, (chunk.tokens if chunk.draft is None else chunk.draft).cpu()])
    reply.ended = chunk.ended
