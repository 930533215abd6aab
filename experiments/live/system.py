"""What all clients share: the model with its one thread, the queue in front of it, limits, test queries."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from experiments.jobs.speaking.speaking_model import SpeakingModel
from experiments.live.answering import Answerer
from experiments.live.protocol import MAX_DECODINGS, MAX_TEXT_CHARACTERS, VERSION
from experiments.live.queries import QueryKind, ServedQuery
from experiments.live.turn_queue import TurnQueue
from lightning_modules.number_checks import require_at_least, require_positive

_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """What clients may ask for.

    Attributes:
        max_query_s: The longest query.
        max_clients: Connections at a time.
        max_waiting: Clients that may wait for the model.
        max_unsent_mb: What may wait to be sent to a client that reads slowly.
        patience_s: How long sending one message may take, and how long a client may take to say hello.

    Raises:
        UserError: If a number is out of range.
    """

    max_query_s: float = 30.0
    max_clients: int = 64
    max_waiting: int = 32
    max_unsent_mb: float = 4.0
    patience_s: float = 20.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least(1, max_clients=self.max_clients, max_waiting=self.max_waiting)
        require_positive(max_query_s=self.max_query_s, max_unsent_mb=self.max_unsent_mb, patience_s=self.patience_s)


@dataclass
class LiveSystem:
    """A model that answers clients one after the other.

    Attributes:
        model: Answers.
        queries: Test queries to ask.
        kinds: Which kinds of query the model knows.
        limits: What clients may ask for.
    """

    model: SpeakingModel
    queries: list[ServedQuery] = field(default_factory=list)
    kinds: list[QueryKind] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Make the threads: one for the model, one for what must not hold up the connections meanwhile."""
        self.answerer = Answerer(self.model)
        self.queue = TurnQueue(self.limits.max_waiting)
        self.query_of = {one.id: one for one in self.queries}
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._listening_thread = ThreadPoolExecutor(1, "listening")

    def warm_up(self) -> None:
        """Let the model speak once, in its thread."""
        self._model_thread.submit(self.answerer.warm_up).result()

    async def compute(self, work: Callable[[], _T], cancelled: threading.Event) -> _T:
        """Run work of the model in its thread; whoever cancels the wait waits until the work has noticed.

        Args:
            work: Looks at ``cancelled`` now and then.
            cancelled: Set if nobody waits any more.
        """
        running = asyncio.get_running_loop().run_in_executor(self._model_thread, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # looked at, so that nobody is told that it was not
            raise

    async def listen(self, work: Callable[[], _T]) -> _T:
        """Run work on incoming audio beside the connections."""
        return await asyncio.get_running_loop().run_in_executor(self._listening_thread, work)

    def close(self) -> None:
        """End the threads, after the work that they are at."""
        self._model_thread.shutdown(cancel_futures=True)
        self._listening_thread.shutdown(cancel_futures=True)

    def welcome(self) -> dict[str, Any]:
        """Describe the system to a client."""
        return {
            "type": "welcome",
            "version": VERSION,
            "model": str(self.model.source),
            "rate_hz": self.model.sample_rate_hz,
            "block_tokens": {name: self._talker(name).block_size for name in self.model.decodings},
            "decodings": [
                {"name": name, "talker": one.talker, "steps": one.num_steps, "rule": one.rule}
                for name, one in self.model.decodings.items()
            ],
            "heard_by": self.model.transcribed_by,
            "kinds": [vars(one) for one in self.kinds],
            "queries": [{"id": one.id, "text": one.text} for one in self.queries],
            "limits": {
                "query_s": self.limits.max_query_s,
                "text_characters": MAX_TEXT_CHARACTERS,
                "decodings": MAX_DECODINGS,
            },
        }

    def _talker(self, name: str) -> Any:
        return self.model.llm.talkers[self.model.decodings[name].talker]
