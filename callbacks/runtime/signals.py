"""Signals that ask the program to end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None]


class Interrupted(BaseException):
    """The user, or the system, asked the program to end.

    It is no `Exception`, so that nothing on the way takes it for a failure, and no `KeyboardInterrupt`, which Lightning
    turns into exit code 1.
    """

    def __init__(self, signum: int, message: str) -> None:
        """Remember which signal it was and what became of the work."""
        super().__init__(message)
        self.exit_code = 128 + signum


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within this context, SIGINT and SIGTERM raise `Interrupted` at once, and once more kill at once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        for number in SIGNALS:
            signal.signal(number, exit_at_once)
        raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}; finished stages are kept")

    with signal_handlers(stop):
        yield


@contextlib.contextmanager
def signal_handlers(handler: Handler) -> Iterator[None]:
    """Within this context, SIGINT and SIGTERM call `handler`; without effect outside the main thread.

    A forked worker inherits the handlers, but it is not the worker's business to decide: there SIGINT, which a terminal
    sends to all processes, does nothing, and SIGTERM ends the worker.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handler(signum, frame)
        elif signum == signal.SIGTERM:
            os._exit(128 + signum)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def exit_at_once(signum: int, frame: FrameType | None) -> None:
    """End the process and its workers without any further work, a signal handler."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(128 + signum)
