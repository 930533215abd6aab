"""A tiny untrained system for the live server, and a conversation with it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from experiments.jobs.speaking.speaking_model import SpeakingModel
from experiments.live.access import Access
from experiments.live.queries import QueryKind, ServedQuery
from experiments.live.server import ServerThread
from experiments.live.system import Limits, LiveSystem
from experiments.live.trials.trial_client import TrialClient, connected
from lightning_modules.inference.pipelines import Pipeline, Sequential
from lightning_modules.talker.decoding.decoding import Decoding
from tests.lightning_modules.test_speech_llm import make_llm

T = TypeVar("T")
DECODINGS = {"ntp": Decoding("ntp", 8), "mdm_4": Decoding("mdm", 4)}


def make_system(
    limits: Limits | None = None, max_speech_s: float = 2.0, pipeline: Pipeline | None = None
) -> LiveSystem:
    """Make a system whose talkers are not trained, so that each speaks until it is cut off."""
    llm = make_llm("ntp", "mdm", decodings=DECODINGS).eval().requires_grad_(False)
    llm.max_speech_s = max_speech_s
    hear, joined = (lambda query: f"{len(query)} samples"), pipeline or Sequential()
    model = SpeakingModel(llm, llm.decodings, "runs/tiny", None, hear, "thinker", joined)
    noise = np.random.default_rng(0).normal(0.0, 0.1, (3, 8000)).astype(np.float32)
    queries = [ServedQuery(f"test_{i}", f"Query {i}?", waveform) for i, waveform in enumerate(noise)]
    return LiveSystem(model, queries, [QueryKind("query", ["Query 0?", "Query 1?"])], limits or Limits())


@contextmanager
def serving(limits: Limits | None = None, access: Access | None = None, **settings: Any) -> Iterator[ServerThread]:
    """Serve a tiny system."""
    with ServerThread(make_system(limits, **settings), access) as server:
        yield server


def talk(server: ServerThread, conversation: Callable[[TrialClient], Awaitable[T]]) -> T:
    """Connect to a server, say hello, and hold a conversation, which gets the connection."""

    async def connect() -> T:
        async with connected(server.address) as client:
            assert client.welcome["type"] == "welcome"
            return await conversation(client)

    return asyncio.run(asyncio.wait_for(connect(), 60))
