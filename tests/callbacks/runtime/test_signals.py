"""Signals reach the main process once, spare its workers, and are given back."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from callbacks.runtime.signals import SIGNALS, Interrupted, interruptible, signal_handlers


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_raises_and_the_handlers_are_given_back(signum: signal.Signals, code: int) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted, match=f"stopped by {signum.name}") as caught, interruptible():
        os.kill(os.getpid(), signum)
        time.sleep(1)
    assert caught.value.exit_code == code
    assert [signal.getsignal(number) for number in SIGNALS] == before


STUBBORN = """
import os, signal, time
from callbacks.runtime.signals import interruptible
with interruptible():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    finally:
        print("cleaning up", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        print("never")
"""


def test_a_second_signal_ends_at_once() -> None:
    root = Path(__file__).resolve().parents[3]
    ended = subprocess.run([sys.executable, "-c", STUBBORN], cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 143
    assert ended.stdout == "cleaning up\n" and ended.stderr == ""


def _sleep(ready: multiprocessing.Event) -> None:
    ready.set()
    time.sleep(30)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_workers_ignore_ctrl_c_and_end_on_terminate() -> None:
    context = multiprocessing.get_context("fork")
    received: list[int] = []
    with signal_handlers(lambda signum, frame: received.append(signum)):
        ready = context.Event()
        worker = context.Process(target=_sleep, args=(ready,), daemon=True)
        worker.start()
        assert ready.wait(10)
        os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.2)
        assert worker.is_alive()
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 128 + signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    assert received == [signal.SIGINT]
