"""A local server of chat completions, for the tests of judges."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Served:
    """Where the server is, and what it was asked."""

    address: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def serve(answer: Callable[[int, str], str | int | bytes | dict[str, Any]]) -> Iterator[Served]:
    """Serve in a thread.

    Args:
        answer: Gives, for the number of a request from 0 and its prompt, what the judge writes, a status, or a body; in
            bytes, one that is no JSON.
    """
    served, started, loop = Served(), threading.Event(), asyncio.new_event_loop()

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        number = len(served.bodies)
        served.bodies.append(body)
        served.keys.append(request.headers.get("Authorization"))
        found = answer(number, body["messages"][-1]["content"])
        if isinstance(found, int):
            return web.Response(status=found, text="told to fail")
        if isinstance(found, bytes):
            return web.Response(body=found, content_type="text/html")
        if isinstance(found, dict):
            return web.json_response(found)
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": found}}]})

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        served.address = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(10)
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
