"""An overlapped reply is the sequential one, ends where it ends, fails where it fails, and leaves no thread behind."""

import gc
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.inference.clocks import StopWatch, Timed
from lightning_modules.inference.conversation import Conversation
from lightning_modules.inference.pipelines import Overlapped, Pipeline, Sequential
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.inference.stages import SpokenBlock, run_stages
from lightning_modules.inference.timeline import TALKER, THINKER, VOCODER, Timeline
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.streaming import KnownTextState, SpeechChunk, TextState
from lightning_modules.vocoder.base import VocoderStream
from tests.lightning_modules.talker.conftest import EMBEDDING, HIDDEN, make_talker
from tests.lightning_modules.test_speech_llm import ToneStream, make_batch, make_llm

TALKERS = {kind: make_talker(kind) for kind in ("set_block", "ntp", "vocalnet")}
DECODINGS = {"set_block": Decoding("it", 2), "ntp": Decoding("it", 8), "vocalnet": Decoding("it", 8)}
CPU = torch.device("cpu")


class TroubleError(Exception):
    """Planted in a stage."""


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Nothing of a reply runs on after a test."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@dataclass
class Planted(VocoderStream):
    """A reply of made-up text, in which one stage fails at one of its items.

    Attributes:
        talker: Speaks it.
        num_text: Text tokens.
        where: Stage that fails; none if empty.
        at: At which of its items.
        num_written: Text tokens so far.
        num_pushed: Blocks that the vocoder got.
    """

    talker: str = "set_block"
    num_text: int = 6
    where: str = ""
    at: int = 0
    max_blocks: int = 4
    num_written: int = 0
    num_pushed: int = 0

    def fail(self, stage: str, number: int) -> None:
        if (stage, number) == (self.where, self.at):
            raise TroubleError(f"{stage} {number}")

    def write(self) -> Iterator[TextState]:
        generator = torch.Generator().manual_seed(self.num_text)
        for number in range(self.num_text):
            self.fail(THINKER, number)
            states = (torch.randn(size, generator=generator) for size in (HIDDEN, EMBEDDING))
            self.num_written += 1
            yield KnownTextState(*states)
        self.fail(THINKER, self.num_text)

    def speak(self, states: Iterator[TextState]) -> Iterator[SpeechChunk]:
        chunks = TALKERS[self.talker].stream(states, self.max_blocks, DECODINGS[self.talker])
        for number, chunk in enumerate(chunks):
            self.fail(TALKER, number)
            yield chunk

    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        self.fail(VOCODER, self.num_pushed)
        self.num_pushed += 1
        return ToneStream().push(tokens, last)

    def run(self, pipeline: Pipeline) -> Generator[SpokenBlock]:
        timeline, clock, watch = Timeline(), pipeline.new_clock(0.0), StopWatch(CPU)
        text = Timed(THINKER, self.write(), timeline, clock, watch)
        return run_stages(text, self.speak, self, pipeline, timeline, clock, watch)


def take(blocks: Generator[SpokenBlock], most: int) -> tuple[list[object], str]:
    """Take so many blocks, and stop; give what was in them, and what went wrong."""
    taken, error = [], ""
    try:
        for _ in range(most):
            block = next(blocks, None)
            if block is None:
                break
            chunk = block.chunk
            taken.append(
                (
                    chunk.tokens.tolist(),
                    chunk.num_forwards,
                    chunk.is_last,
                    block.num_text_tokens,
                    block.samples.tolist(),
                )
            )
    except TroubleError as trouble:
        error = str(trouble)
    blocks.close()
    return taken, error


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(list(TALKERS)),
    num_text=st.integers(0, 9),
    max_blocks=st.integers(1, 5),
    where=st.sampled_from(["", THINKER, TALKER, VOCODER]),
    at=st.integers(0, 5),
    most=st.integers(0, 6),
    ahead=st.tuples(st.integers(1, 4), st.integers(1, 3)),
)
def test_an_overlapped_reply_is_the_sequential_one(
    kind: str, num_text: int, max_blocks: int, where: str, at: int, most: int, ahead: tuple[int, int]
) -> None:
    reply = kind, num_text, where, at, max_blocks
    expected = take(Planted(*reply).run(Sequential()), most)
    before = set(threading.enumerate())
    assert take(Planted(*reply).run(Overlapped(*ahead)), most) == expected
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("name", "steps", "mode"),
    [("ntp", 8, "plain"), ("mdm", 4, "autocast"), ("mtp", 4, "inference"), ("vocalnet", 8, "plain")],
)
def test_the_whole_system_says_the_same_in_any_mode(name: str, steps: int, mode: str) -> None:
    responder = make_llm(name).eval().responder
    query = make_batch(0).query
    assert query is not None
    replies = []
    for pipeline in (Sequential(), Overlapped(), Overlapped(1, 1)):
        with torch.autocast("cpu", torch.bfloat16, mode == "autocast"), torch.inference_mode(mode == "inference"):
            text = responder.write_text(query[0])
            replies.append(responder.answer(text, Decoding(name, steps), pipeline))
    for reply in replies[1:]:
        assert torch.equal(reply.speech_tokens, replies[0].speech_tokens) and len(reply.speech_tokens)
        assert torch.equal(reply.waveform, replies[0].waveform) and torch.equal(reply.order, replies[0].order)
        assert (reply.text, reply.ended, reply.num_forwards) == (
            replies[0].text, replies[0].ended, replies[0].num_forwards,
        )  # fmt: skip


@dataclass
class Rendezvous(Planted):
    """Block 0 is decoded while the thinker writes on, and heard while block 1 is decoded; else nobody goes on."""

    wrote_on: threading.Event = field(default_factory=threading.Event)
    decodes_on: threading.Event = field(default_factory=threading.Event)

    def write(self) -> Iterator[TextState]:
        for number, state in enumerate(super().write()):
            if number == 5:
                self.wrote_on.set()
            yield state

    def speak(self, states: Iterator[TextState]) -> Iterator[SpeechChunk]:
        for number, chunk in enumerate(super().speak(states)):
            if number == 0:
                assert self.wrote_on.wait(30), "block 0 has read two tokens, and the thinker writes no more"
            if number == 1:
                self.decodes_on.set()
            yield chunk

    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        if self.num_pushed == 0:
            assert self.decodes_on.wait(30), "the vocoder works on block 0, and the talker does nothing"
        return super().push(tokens, last)


def test_stages_work_at_the_same_time() -> None:
    expected = take(Planted().run(Sequential()), 9)
    assert take(Rendezvous().run(Overlapped()), 9) == expected and len(expected[0]) > 2


def test_who_stops_listening_stops_the_thinker_within_what_it_may_be_ahead() -> None:
    reply = Planted(num_text=500, max_blocks=100)
    blocks = reply.run(Overlapped(text_ahead=3, blocks_ahead=1))
    next(blocks)
    blocks.close()
    # blocks that were decoded: heard, waiting, pushed, waiting, in work; two tokens each, and one in the making
    assert reply.num_written <= 5 * 2 + 3 + 1 and reply.num_pushed <= 3
    written = reply.num_written
    assert list(blocks) == [] and reply.num_written == written


def test_a_reply_that_is_dropped_ends_its_threads() -> None:
    blocks = Planted().run(Overlapped())
    next(blocks)
    assert threading.active_count() > 1
    del blocks
    gc.collect()


def test_stages_are_written_down_as_they_worked() -> None:
    responder = make_llm("mdm").eval().responder
    query = make_batch(0).query
    assert query is not None
    for pipeline in (Sequential(), Overlapped()):
        reply = responder.answer(responder.write_text(query[0]), Decoding("mdm", 4), pipeline)
        timeline, heard = reply.timeline, reply.timeline.deliveries
        assert len(timeline.of(TALKER)) == len(timeline.of(VOCODER)) == len(heard) == len(reply.num_forwards)
        tokens = timeline.of(THINKER)
        assert [span.index for span in tokens] == list(range(len(tokens))) and len(tokens) >= 8
        for stage in (THINKER, TALKER, VOCODER):
            spans = timeline.of(stage)
            for one, following in zip(spans, spans[1:], strict=False):
                assert one.start_s <= one.end_s <= following.start_s + 1e-9
        for talker, vocoder, delivery in zip(timeline.of(TALKER), timeline.of(VOCODER), heard, strict=True):
            assert talker.end_s <= vocoder.start_s + 1e-9 and vocoder.end_s <= delivery.at_s + 1e-9
            if delivery.num_text_tokens:
                # What a thread does before it waits counts as if done behind the wait, where stages overlap.
                reads_by = talker.start_s if isinstance(pipeline, Sequential) else talker.end_s
                assert tokens[delivery.num_text_tokens - 1].end_s <= reads_by + 1e-9
        first = reply.first_chunk_times.as_milliseconds()
        assert first["total"] == pytest.approx(1000 * heard[0].at_s) and min(first.values()) > 0
        assert vars(reply.times) == pytest.approx(vars(timeline.busy()))


def test_decodings_are_compared_one_stage_after_the_other_whatever_else_overlaps() -> None:
    responder = make_llm("ntp", "mdm").eval().responder
    responder.pipeline = Overlapped()
    query = make_batch(0).query
    assert query is not None
    for reply in responder.compare(query[0], {"ntp": Decoding("ntp", 8), "mdm": Decoding("mdm", 2)}).values():
        assert reply.timeline.end_s == pytest.approx(sum(vars(reply.times).values()))


def test_an_interrupted_answer_is_kept_as_far_as_it_was_spoken_however_far_the_thinker_is() -> None:
    responder = make_llm("ntp").eval().responder
    query = make_batch(0).query
    assert query is not None
    kept = []
    for pipeline in (Sequential(), Overlapped()):
        responder.pipeline = pipeline
        conversation = Conversation(responder)
        chunks = conversation.answer(query[0], Decoding("ntp", 8), SpokenReply())
        next(chunks)
        chunks.close()
        kept.append([turn.text for turn in conversation.turns])
    assert kept[0] == kept[1] and kept[0][1]


@pytest.mark.parametrize("name", ["text_ahead", "blocks_ahead"])
def test_a_stage_that_may_not_be_ahead_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0"):
        Overlapped(**{name: 0})
