"""What is still to be sent to one client, of bounded size."""

from __future__ import annotations

import asyncio
from collections import deque

from aiohttp import web


class Outbox:
    """Sends messages in order; a client that does not read them is given up.

    Args:
        socket: The connection.
        max_bytes: What may wait to be sent.
        patience_s: How long sending one message may take.

    Attributes:
        is_given_up: Whether the client reads too slowly, so that sending has ended.
    """

    def __init__(self, socket: web.WebSocketResponse, max_bytes: int, patience_s: float) -> None:
        self._socket, self._max_bytes, self._patience_s = socket, max_bytes, patience_s
        self._messages: deque[bytes | str] = deque()
        self._num_bytes = 0
        self._changed = asyncio.Event()
        self.is_given_up = False

    def put(self, message: str | bytes) -> None:
        """Add a message; from the event loop's thread only."""
        if self.is_given_up:
            return
        self._messages.append(message)
        self._num_bytes += len(message)
        if self._num_bytes > self._max_bytes:
            self.is_given_up = True
            self._messages.clear()
        self._changed.set()

    async def run(self) -> None:
        """Send until the client is given up or the connection is lost."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                while self._messages and not self.is_given_up:
                    message = self._messages.popleft()
                    async with asyncio.timeout(self._patience_s):
                        if isinstance(message, bytes):
                            await self._socket.send_bytes(message)
                        else:
                            await self._socket.send_str(message)
                    self._num_bytes -= len(message)
                if self.is_given_up:
                    return
        except TimeoutError:
            self.is_given_up = True
        except ConnectionError:
            return
