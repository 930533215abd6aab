"""A job that serves the live page until it is told to end."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from callbacks.runtime.garbage import no_garbage_collection
from callbacks.runtime.signals import SIGNALS, Interrupted
from experiments.jobs.speaking.speaking_model import load_speaking_model
from experiments.live.access import Access
from experiments.live.queries import read_kinds, read_test_queries
from experiments.live.server import LiveServer
from experiments.live.system import Limits, LiveSystem
from lightning_modules.inference.pipelines import Pipeline
from lightning_modules.number_checks import require_at_least, require_within


class LivePage:
    """Loads a system that speaks, and serves the page on which one speaks with it.

    Args:
        run: A run of a SpeechLLM, an export, or the folder of an experiment's runs; see
            :func:`~experiments.jobs.speaking.speaking_model.load_speaking_model`.
        vocoder_run: A run whose vocoder speaks, if the run has none, as a training has.
        host: Address to bind to; any but that of this machine asks clients for a token.
        port: Port to bind to.
        token: That token; drawn at the start if None.
        allowed_hosts: Further names by which the server may be called, such as that of a proxy.
        limits: What clients may ask for.
        num_queries: Test queries that the page offers.
        device: Device of the model.
        pipeline: Whether thinker, talker and vocoder work one after the other or at the same time; the former if None.
        compiled_talkers: Let talkers speak with compiled blocks, on a CPU with a C++ compiler; see :class:`Responder`.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        run: Path,
        vocoder_run: Path | None = None,
        host: str = "localhost",
        port: int = 8765,
        token: str | None = None,
        allowed_hosts: Sequence[str] = (),
        limits: Limits | None = None,
        num_queries: int = 100,
        device: str = "cpu",
        pipeline: Pipeline | None = None,
        compiled_talkers: bool = False,
    ) -> None:
        require_within(1, 65_535, port=port)
        require_at_least(0, num_queries=num_queries)
        self.from_run, self.vocoder_run = Path(run), vocoder_run
        self.host, self.port, self.token, self.allowed_hosts = host, port, token, allowed_hosts
        self.limits, self.num_queries, self.device = limits or Limits(), num_queries, device
        self.pipeline, self.compiled_talkers = pipeline, compiled_talkers

    def run(self, output_dir: Path) -> None:
        """Serve until SIGINT or SIGTERM.

        Args:
            output_dir: The run directory, in which nothing is written.

        Raises:
            Interrupted: When it was told to end; it is never finished by itself.
            FileNotFoundError: If the run is missing or has no checkpoint.
            UserError: If it cannot speak, or the port is taken.
        """
        with no_garbage_collection():
            model = load_speaking_model(self.from_run, self.vocoder_run, self.pipeline, self.compiled_talkers)
            model.llm.to(self.device)
            queries = read_test_queries(model.config, self.num_queries) if self.num_queries else []
            system = LiveSystem(model, queries, read_kinds(model.config), self.limits)
            system.warm_up()
            gc.freeze()  # all of this stays: no collection in the midst of a reply need look at it
        access = Access(self.host, self.token, self.allowed_hosts)
        signum = asyncio.run(self._serve(LiveServer(system, self.host, self.port, access)))
        raise Interrupted(signum, "the live page is closed")

    async def _serve(self, server: LiveServer) -> int:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def stop(signum: int) -> None:
            if not told.done():
                told.set_result(signum)

        await server.start()
        for signum in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(signum, stop, signum)
        since_start_s = time.time() - psutil.Process().create_time()
        print(f"{self.from_run} speaks, {since_start_s:.1f} s after the start of this process", flush=True)
        print(f"open {server.address} (Ctrl-C ends it)", flush=True)
        try:
            return await told
        finally:
            await server.stop()
