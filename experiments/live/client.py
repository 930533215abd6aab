"""One client: what it asks, what is under way for it, what it is told."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from datamodules.batch import SAMPLE_RATE_HZ
from experiments.jobs.speaking.queries import prepared_query
from experiments.live.access import Access
from experiments.live.answering import Cancelled, Tell
from experiments.live.listening import QueryRecorder
from experiments.live.outbox import Outbox
from experiments.live.protocol import Ask, End, Hello, Listen, Message, Say, Stop, parse_message
from experiments.live.system import LiveSystem
from lightning_modules.errors import UserError

LOGGER = logging.getLogger(__name__)
BAD_TOKEN, NO_HELLO = 4401, 4408  # codes with which a connection is closed


class Client:
    """Reads the messages of one connection, and answers its queries one at a time.

    A new query ends what is under way for the one before: who speaks while a reply is heard interrupts it.

    Args:
        system: Answers.
        socket: The connection.
        outbox: What is sent on it.
        access: Who may ask.
    """

    def __init__(self, system: LiveSystem, socket: web.WebSocketResponse, outbox: Outbox, access: Access) -> None:
        self._system, self._socket, self._outbox, self._access = system, socket, outbox, access
        self._turn = 0
        self._task: asyncio.Task[None] | None = None
        self._recorder: QueryRecorder | None = None

    async def run(self) -> None:
        """Serve until the connection ends."""
        try:
            async with asyncio.timeout(self._system.limits.patience_s):
                is_let_in = await self._greet()
        except TimeoutError:
            await self._socket.close(code=NO_HELLO, message=b"say hello first")
            return
        if not is_let_in:
            return
        async for message in self._socket:
            try:
                if message.type == WSMsgType.TEXT:
                    await self._receive(parse_message(message.data))
                elif message.type == WSMsgType.BINARY:
                    await self._hear(message.data)
            except UserError as error:
                self._tell_error(error)

    async def close(self) -> None:
        """End what is under way."""
        self._recorder = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _greet(self) -> bool:
        while True:
            received = await self._socket.receive()
            if received.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                return False
            try:
                message = parse_message(received.data) if received.type == WSMsgType.TEXT else None
                if not isinstance(message, Hello):
                    raise UserError("say hello first: {'type': 'hello'}")
            except UserError as error:
                self._tell_error(error)
                continue
            if not self._access.admits(message.token):
                await self._socket.close(code=BAD_TOKEN, message=b"the token is wrong")
                return False
            self._tell(self._system.welcome())
            return True

    async def _receive(self, message: Message) -> None:
        if isinstance(message, Say | Ask | Listen):
            unknown = [name for name in message.decodings if name not in self._system.model.decodings]
            if unknown:
                known = list(self._system.model.decodings)
                raise UserError(f"there is no decoding {unknown[0][:40]!r}; there are {known}")
        if isinstance(message, Say):
            text = message.text
            await self._begin(lambda: self._system.answerer.speak_query(text), message.decodings, text)
        elif isinstance(message, Ask):
            query = self._system.query_of.get(message.id)
            if query is None:
                raise UserError(f"there is no test query {message.id[:40]!r}")
            waveform = query.waveform
            await self._begin(lambda: waveform, message.decodings, query.text)
        elif isinstance(message, Listen):
            await self._stop()
            self._recorder = QueryRecorder(message, self._system.limits.max_query_s)
            self._turn += 1
            self._tell({"type": "listening", "turn": self._turn})
        elif isinstance(message, End):
            await self._end_query("end")
        elif isinstance(message, Stop):
            await self._stop()
        else:
            raise UserError("hello was said already")

    async def _hear(self, data: bytes) -> None:
        """Take audio; what comes after a query has ended is dropped, for it may have been on its way."""
        recorder = self._recorder
        if recorder is None:
            return
        try:
            has_ended = await self._system.listen(lambda: recorder.push(data))
        except UserError:
            self._recorder = None
            raise
        if has_ended:
            await self._end_query("silence")

    async def _end_query(self, why: str) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            raise UserError("there is no query to end; begin one with a message 'listen'")
        self._tell({"type": "query_end", "turn": self._turn, "why": why})
        waveform = prepared_query(recorder.finish())
        await self._begin(lambda: waveform, recorder.settings.decodings, None, is_new=False)

    async def _stop(self) -> None:
        """Give up the query and its replies."""
        was_busy = self._recorder is not None or (self._task is not None and not self._task.done())
        await self.close()
        if was_busy:
            self._tell({"type": "stopped", "turn": self._turn})

    async def _begin(
        self, make_query: Callable[[], np.ndarray], names: list[str], text: str | None, is_new: bool = True
    ) -> None:
        asked_s = time.perf_counter()
        await self._stop()
        self._turn += is_new
        work = self._answer(self._turn, make_query, names, text, asked_s)
        self._task = asyncio.create_task(work, name="turn of a live client")

    async def _answer(
        self, turn: int, make_query: Callable[[], np.ndarray], names: list[str], text: str | None, asked_s: float
    ) -> None:
        cancelled = threading.Event()
        tell = self._tell_from_thread(cancelled)
        answerer, query = self._system.answerer, None
        try:
            for index, name in enumerate(names):
                tell_place = partial(self._tell_place, turn, index)
                async with self._system.queue.turn(tell_place):
                    waited_ms = round(1000 * (time.perf_counter() - asked_s), 1)
                    if query is None:
                        query = await self._system.compute(make_query, cancelled)
                        begun = {"type": "query", "turn": turn, "text": text, "waited_ms": waited_ms}
                        self._tell({**begun, "audio_s": round(len(query) / SAMPLE_RATE_HZ, 3)})
                    work = partial(answerer.answer, query, name, index, turn, tell, cancelled)
                    await self._system.compute(work, cancelled)
                    if index == 0:  # behind the first reply, which does not wait for it
                        heard = await self._system.compute(partial(answerer.hear, query), cancelled)
                        self._tell(
                            {"type": "heard", "turn": turn, "text": heard, "by": self._system.model.transcribed_by}
                        )
            self._tell({"type": "done", "turn": turn})
        except UserError as error:
            self._tell_error(error, turn)
        except Cancelled:
            pass  # the client has gone, or reads too slowly
        except Exception:
            LOGGER.exception("a query could not be answered")
            self._tell_error(UserError("the server failed to answer; its log says why"), turn)

    def _tell_from_thread(self, cancelled: threading.Event) -> Tell:
        loop = asyncio.get_running_loop()

        def put(message: Mapping[str, Any] | bytes) -> None:
            if not cancelled.is_set():
                self._tell(message)
            if self._outbox.is_given_up:
                cancelled.set()

        def tell(message: Mapping[str, Any] | bytes) -> None:
            loop.call_soon_threadsafe(put, message)

        return tell

    def _tell_place(self, turn: int, index: int, place: int) -> None:
        self._tell({"type": "queued", "turn": turn, "index": index, "place": place})

    def _tell_error(self, error: UserError, turn: int | None = None) -> None:
        self._tell({"type": "error", "turn": turn, "message": str(error)})

    def _tell(self, message: Mapping[str, Any] | bytes) -> None:
        self._outbox.put(message if isinstance(message, bytes) else json.dumps(message))
