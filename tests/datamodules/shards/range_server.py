"""A local file server with byte ranges that may refuse every so many requests, for the tests of streaming."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(
        self, root: Path, log: dict[str, int], fail_every: int | None, knows_ranges: bool, *args: object
    ) -> None:
        self.root, self.log, self.fail_every, self.knows_ranges = root, log, fail_every, knows_ranges
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:  # noqa: N802 - the name that http.server asks for
        self._answer(with_body=False)

    def do_GET(self) -> None:  # noqa: N802
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.log["requests"] += 1
        if self.fail_every and self.log["requests"] % self.fail_every == 0:
            self.log["failed"] += 1
            self._send(503, b"", {})
            return
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            self._send(404, b"", {})
            return
        content, status, headers = path.read_bytes(), 200, {"Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked and self.knows_ranges:
            begin, end = asked.removeprefix("bytes=").split("-")
            last = int(end) if end else len(content) - 1
            headers["Content-Range"] = f"bytes {begin}-{last}/{len(content)}"
            content, status = content[int(begin) : last + 1], 206
            self.log["ranges"] += 1
        self._send(status, content if with_body else b"", headers, len(content))

    def _send(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(root: Path, fail_every: int | None = None, knows_ranges: bool = True) -> Iterator[tuple[str, dict[str, int]]]:
    """Serve a folder; give its address, and counts of requests, ranges and refusals."""
    log = {"requests": 0, "ranges": 0, "failed": 0}
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, root, log, fail_every, knows_ranges))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
