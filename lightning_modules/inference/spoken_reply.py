"""From a spoken query to a spoken reply, timed part by part."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_modules.dialogue import History
from lightning_modules.inference.clocks import StopWatch
from lightning_modules.inference.pipelines import Pipeline, Sequential
from lightning_modules.inference.stages import run_stages
from lightning_modules.inference.timeline import SPEECH_ENCODER, THINKER, PartTimes, Timeline
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.streaming import SpeechChunk
from lightning_modules.thinker.thinker import Thinker, ThinkerToken
from lightning_modules.vocoder.base import Vocoder

Record = Callable[[float, bool], None]


@dataclass
class SpokenReply:
    """What the system answered, and what it cost.

    Attributes:
        text: The thinker's reply, as far as the talker has read it; all of it in the end.
        speech_tokens: Codes, ``(T,) int64`` on the CPU.
        waveform: Samples, ``(S,) float32`` on the CPU.
        num_forwards: Talker forward passes of each block.
        ended: False if the talker was cut off before it said EOS.
        times: Seconds that each part was at work until the end of speech.
        first_chunk_times: Seconds until the first samples, divided among the parts; see :meth:`Timeline.parts_until`.
        first_chunk_audio_s: Seconds of audio that the first chunk holds.
        order: Step of its block that revealed each speech token, from 0, ``(T,) int64`` on the CPU; empty if the talker
            reveals them one by one.
        draft: Codes before they were corrected, ``(T,) int64`` on the CPU; empty where
            ``order`` is.
        timeline: When each part was at work.
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
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def is_timed(self) -> bool:
        """Whether it was spoken alone, and so timed; in a batch nothing is."""
        return self.times.talker_s > 0


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
        self.thinker, self.watch = thinker, StopWatch(query.device)
        start_s = self.watch.now()
        prompt = thinker.encode(query, history, max_text_tokens)
        self.speech_encoder_s = self.watch.now() - start_s
        self.num_dropped_turns = prompt.num_dropped_turns
        self._stream = thinker.stream(prompt, max_text_tokens)
        self.states: list[ThinkerToken | None] = []
        self.token_s: list[float] = []

    @torch.no_grad()
    def write_next(self) -> float:
        """Write one more token, or None behind the last one; gives the seconds that it took."""
        start_s = self.watch.now()
        state = next(self._stream, None)
        seconds = self.watch.now() - start_s
        self.token_s.append(seconds)
        self.states.append(state)
        return seconds

    def decode(self, num_tokens: int | None = None) -> str:
        """Give what was written so far as text, or its first tokens."""
        states = self.states[:num_tokens]
        return self.thinker.decode([state.token_id for state in states if state is not None])


class TextReading(Iterator[ThinkerToken]):
    """Reads a thinker's text from its beginning, and lets it write on where it ends.

    Args:
        text: What is read.
        record: Told, at each token and at the end of the text, the seconds that the thinker took for it, and whether
            it was written now.
    """

    def __init__(self, text: ThinkerText, record: Record | None = None) -> None:
        self.text, self.position, self.record = text, 0, record

    def __next__(self) -> ThinkerToken:
        """Give the next token."""
        if self.position and self.text.states[self.position - 1] is None:
            raise StopIteration
        is_new = self.position == len(self.text.states)
        if is_new:
            self.text.write_next()
        if self.record is not None:
            self.record(self.text.token_s[self.position], is_new)
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
    pipeline: Pipeline | None = None,
) -> Generator[Tensor]:
    """Answer one query, yielding samples while the thinker is still writing.

    Whoever stops listening closes the generator: nothing of the reply runs on then.

    Args:
        text: What the thinker answers. If it was read before, its times count as if it were written now, in a
            sequential pipeline; in others it is there at once.
        talker: Speaks it.
        vocoder: Turns speech tokens into samples.
        decoding: How it does that.
        max_blocks: Where the speech is cut off.
        reply: Filled in place as the reply grows: text, tokens, samples, times.
        pipeline: Whether thinker, talker and vocoder work one after the other or at the same time; the former if None.

    Yields:
        Samples of each chunk, ``(n,) float32``.
    """
    reply = reply if reply is not None else SpokenReply()
    pipeline = pipeline or Sequential()
    timeline, clock = reply.timeline, pipeline.new_clock(text.speech_encoder_s)
    timeline.add(SPEECH_ENCODER, 0, (0.0, text.speech_encoder_s))

    def record(seconds: float, is_new: bool) -> None:
        place = clock.place(seconds) if is_new else clock.replay(seconds)
        timeline.add(THINKER, reading.position, place)

    reading = TextReading(text, record)
    blocks = run_stages(
        reading,
        lambda states: talker.stream(states, max_blocks, decoding),
        vocoder.stream(),
        pipeline,
        timeline,
        clock,
        text.watch,
    )
    with closing(blocks):
        for block in blocks:
            reply.times = timeline.busy()
            reply.text = text.decode(block.num_text_tokens)
            _append(reply, block.chunk, block.samples)
            # A vocoder may wait for more tokens than the first block has; a reply of no samples is timed to its end.
            if not reply.first_chunk_audio_s and (len(block.samples) or block.chunk.is_last):
                reply.first_chunk_times = timeline.parts_until(timeline.deliveries[-1].at_s)
                reply.first_chunk_audio_s = len(block.samples) / vocoder.sample_rate
            yield block.samples
    reply.times = timeline.busy()
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
