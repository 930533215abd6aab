"""The web server of the live page: its own few files, and one WebSocket per client."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from experiments.live.access import Access
from experiments.live.client import Client
from experiments.live.outbox import Outbox
from experiments.live.protocol import MAX_MESSAGE_BYTES
from experiments.live.system import LiveSystem
from lightning_modules.errors import UserError

PAGE_DIR = Path(__file__).parent / "page"
CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
CLOSING_S = 2.0

_T = TypeVar("_T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LiveServer:
    """Serves the page and its clients.

    Args:
        system: Answers; it is closed with the server.
        host: Address to bind to.
        port: Port to bind to; 0 takes a free one.
        access: Who may use it.

    Attributes:
        system: What answers.
    """

    def __init__(self, system: LiveSystem, host: str, port: int, access: Access) -> None:
        self.system, self._host, self._port, self._access = system, host, port, access
        self._files = {
            f"/{file.name}": file.read_bytes() for file in PAGE_DIR.iterdir() if file.suffix in CONTENT_TYPES
        }
        self._sockets: set[web.WebSocketResponse] = set()
        self._runner: web.AppRunner | None = None

    @property
    def num_clients(self) -> int:
        """Connections that are open."""
        return len(self._sockets)

    @property
    def address(self) -> str:
        """Where the page is, with the token if one is needed."""
        name = "localhost" if self._access.is_local else self._host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self._port}/" + (f"#token={self._access.token}" if self._access.token else "")

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            UserError: If the port is taken, or the address is none of this machine.
        """
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.router.add_get("/talk", self._talk)
        app.router.add_get("/", self._page)
        for path in self._files:
            app.router.add_get(path, self._page)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSING_S)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            problem = f"cannot serve at {self._host}:{self._port}: {error.strerror}"
            raise UserError(f"{problem}; end what uses the port, or set job.init_args.port to another") from error
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """End all connections, then the threads of the system."""
        for socket in list(self._sockets):
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(CLOSING_S):
                    await socket.close(code=1001, message=b"the server ends")
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.to_thread(self.system.close)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._access.check(request)
            response = await handler(request)
        except web.HTTPException as refusal:
            refusal.headers.update(HEADERS)
            raise
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _page(self, request: web.Request) -> web.Response:
        name = "/index.html" if request.path == "/" else request.path
        return web.Response(body=self._files[name], content_type=CONTENT_TYPES[Path(name).suffix], charset="utf-8")

    async def _talk(self, request: web.Request) -> web.StreamResponse:
        limits = self.system.limits
        if len(self._sockets) >= limits.max_clients:
            raise web.HTTPServiceUnavailable(text=f"{len(self._sockets)} others are connected; try again later\n")
        socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, heartbeat=limits.patience_s, compress=False)
        await socket.prepare(request)
        self._sockets.add(socket)
        outbox = Outbox(socket, round(limits.max_unsent_mb * 1e6), limits.patience_s)
        client = Client(self.system, socket, outbox, self._access)
        tasks = [asyncio.create_task(client.run()), asyncio.create_task(outbox.run())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await client.close()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self._sockets.discard(socket)
            if outbox.is_given_up and request.transport is not None:
                request.transport.abort()  # a client that does not read would not read a farewell either
        failures = [one for one in results if isinstance(one, Exception)]
        if failures:
            raise failures[0]
        return socket


class ServerThread:
    """A live server beside the caller, for trials and tests; a context that ends it.

    Attributes:
        loop: The server's event loop.
        server: The server.
    """

    def __init__(self, system: LiveSystem, access: Access | None = None, port: int = 0) -> None:
        self.loop = asyncio.new_event_loop()
        self.server = LiveServer(system, "127.0.0.1", port, access or Access("127.0.0.1"))
        self._thread = threading.Thread(target=self.loop.run_forever, name="live server", daemon=True)

    def __enter__(self) -> ServerThread:
        """Start the server."""
        self._thread.start()
        self._run(self.server.start())
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and its loop."""
        self._run(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    @property
    def address(self) -> str:
        """Where the page is."""
        return self.server.address

    def num_tasks(self) -> int:
        """Count the tasks of the server's loop, but for the one that counts."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return self._run(count())

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()
