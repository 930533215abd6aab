"""One reply, told step by step while it is made; runs in the thread of the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.synthetic.espeak import Voice
from experiments.jobs.speaking.queries import speak_query
from experiments.jobs.speaking.speaking_model import SpeakingModel
from experiments.live.protocol import audio_frame
from lightning_modules.inference.responder import Responder
from lightning_modules.inference.spoken_reply import SpokenReply, ThinkerText

Tell = Callable[[Mapping[str, Any] | bytes], None]

QUERY_VOICE = Voice(variant="m3", rate_wpm=165)  # one of those that the quickstart's thinker has heard


class Cancelled(Exception):
    """Nobody waits for the reply any more."""


@dataclass(frozen=True)
class _Told:
    """Who is told of one reply, and what marks its messages.

    Attributes:
        tell: Gets each message.
        cancelled: Set when nobody waits for the reply any more.
        turn: The query's number.
        index: Of the decoding in the query's list.
        decoding: Its name.
        start_s: When the reply was begun, by the clock of `time.perf_counter`.
    """

    tell: Tell
    cancelled: threading.Event
    turn: int
    index: int
    decoding: str
    start_s: float = field(default_factory=time.perf_counter)

    def event(self, kind: str, content: Mapping[str, Any]) -> None:
        """Tell that something has happened, and when."""
        mark = {"turn": self.turn, "index": self.index, "decoding": self.decoding}
        self.tell({"type": kind, **mark, **content, "ms": round(1000 * (time.perf_counter() - self.start_s), 1)})

    def samples(self, samples: Tensor, block: int) -> None:
        """Hand over what a block sounds like."""
        self.tell(audio_frame(samples, self.index, block, self.turn))


class _LiveText(ThinkerText):
    """A thinker's text that tells each token, and ends when nobody waits for it."""

    def __init__(
        self, responder: Responder, query: Tensor, on_token: Callable[[str], None], cancelled: threading.Event
    ) -> None:
        super().__init__(responder.thinker, query, responder.max_text_tokens)
        self._on_token, self._cancelled = on_token, cancelled

    def write_next(self) -> float:
        """Write one more token; see the base."""
        if self._cancelled.is_set():
            raise Cancelled
        seconds = super().write_next()
        if self.states[-1] is not None:
            self._on_token(self.decode())
        return seconds


class Answerer:
    """Makes queries and replies; everything here is for one thread.

    Args:
        model: Answers.
    """

    def __init__(self, model: SpeakingModel) -> None:
        self.model, self._responder = model, model.responder

    def warm_up(self) -> None:
        """Speak once with every talker, so that the first client does not pay for lazy initialisation."""
        self.speak_query("Hello.")
        one_of_each = {decoding.talker: decoding for decoding in self.model.decodings.values()}
        with self.model.in_precision():
            self._responder.warm_up(one_of_each, self.model.llm.device)

    def speak_query(self, text: str) -> np.ndarray:
        """Speak a typed query by the embedded synthesizer, ``(S,) float32`` at 16 kHz."""
        return speak_query(text, QUERY_VOICE).numpy()

    @torch.no_grad()
    def hear(self, query: np.ndarray) -> str | None:
        """Write down what is heard in a query; None if nothing here learned to."""
        if self.model.transcribe is None:
            return None
        with self.model.in_precision():
            return self.model.transcribe(torch.from_numpy(query).to(self.model.llm.device))

    def answer(
        self, query: np.ndarray, name: str, index: int, turn: int, tell: Tell, cancelled: threading.Event
    ) -> None:
        """Speak the answer to a query.

        Args:
            query: ``(S,) float32`` at 16 kHz.
            name: Of the decoding.
            index: Of the decoding in the query's list.
            turn: The query's number.
            tell: Gets each message as soon as there is something to tell.
            cancelled: Set when nobody waits for the reply any more.

        Raises:
            Cancelled: If that is set.
            UserError: If the query is too long.
        """
        with torch.no_grad(), self.model.in_precision():
            self._answer(query, _Told(tell, cancelled, turn, index, name))

    def _answer(self, query: np.ndarray, told: _Told) -> None:
        responder, decoding = self._responder, self.model.decodings[told.decoding]
        told.event("begin", {})
        responder.adapters.select(decoding.adapter)
        waveform = torch.from_numpy(query).to(self.model.llm.device)
        text = _LiveText(responder, waveform, lambda so_far: told.event("text", {"text": so_far}), told.cancelled)
        reply = SpokenReply()
        with closing(responder.stream(text, decoding, reply)) as chunks:
            self._tell_chunks(chunks, reply, told)
        told.event("reply", self._summary(reply))

    def _tell_chunks(self, chunks: Iterator[Tensor], reply: SpokenReply, told: _Told) -> None:
        is_first, num_told = True, 0
        for block, samples in enumerate(chunks):
            if told.cancelled.is_set():
                raise Cancelled
            if len(samples):
                told.samples(samples, block)
            if is_first and reply.first_chunk_audio_s:
                is_first = False
                told.event("first_chunk", self._first_chunk(reply))
            tokens, order = reply.speech_tokens[num_told:].tolist(), reply.order[num_told:].tolist()
            num_told = len(reply.speech_tokens)
            passes = reply.num_forwards[-1]
            told.event("block", {"block": block, "tokens": tokens, "order": order or None, "passes": passes})

    def _first_chunk(self, reply: SpokenReply) -> dict[str, Any]:
        parts = {name: round(value, 1) for name, value in reply.first_chunk_times.as_milliseconds().items()}
        return {"stages_ms": parts, "audio_s": round(reply.first_chunk_audio_s, 3)}

    def _summary(self, reply: SpokenReply) -> dict[str, Any]:
        seconds, passes = len(reply.waveform) / self.model.sample_rate_hz, reply.num_forwards
        return {
            "text": reply.text,
            "is_whole": reply.ended,
            "audio_s": round(seconds, 3),
            "rtf": round(reply.times.talker_s / seconds, 4) if seconds else None,
            "rtf_of_all": round(reply.timeline.end_s / seconds, 4) if seconds else None,
            "passes_per_block": round(sum(passes) / len(passes), 2) if passes else None,
            "spans": [
                [span.stage, span.index, round(1000 * span.start_s, 1), round(1000 * span.end_s, 1)]
                for span in reply.timeline.spans
            ],
        }
