"""A client of the live server for trials."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

PATIENCE_S = 300.0
AUDIO = "audio"


class ConnectionEnded(Exception):
    """The server has closed the connection."""


class TrialClient:
    """One connection that was welcomed.

    Args:
        socket: The connection.
        welcome: What the server said.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, welcome: dict[str, Any]) -> None:
        self.socket, self.welcome = socket, welcome

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a message."""
        await self.socket.send_str(json.dumps({"type": kind, **fields}))

    async def read(self) -> dict[str, Any]:
        """Read a message; a frame of audio becomes ``{"type": "audio", "data": ...}``.

        Raises:
            ConnectionEnded: If there is none.
        """
        async with asyncio.timeout(PATIENCE_S):
            message = await self.socket.receive()
        if message.type == aiohttp.WSMsgType.BINARY:
            return {"type": AUDIO, "data": message.data}
        if message.type != aiohttp.WSMsgType.TEXT:
            raise ConnectionEnded
        return json.loads(message.data)

    async def read_until(self, *kinds: str) -> list[dict[str, Any]]:
        """Read messages up to the first of some kinds."""
        found = [await self.read()]
        while found[-1]["type"] not in kinds:
            found.append(await self.read())
        return found

    async def ask(self, query: str, *decodings: str) -> list[dict[str, Any]]:
        """Ask a test query and read everything that is told until it is done."""
        await self.send("ask", id=query, decodings=list(decodings))
        return await self.read_until("done", "error")


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[TrialClient]:
    """Connect, and say hello."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}talk", max_msg_size=0) as socket:
        await socket.send_str('{"type": "hello"}')
        yield TrialClient(socket, json.loads((await socket.receive()).data))
