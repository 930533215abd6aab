"""The job of the live page serves until it is told to end, says where, and then ends everything."""

import asyncio
import os
import signal
import socket
import threading
from pathlib import Path

import aiohttp
import pytest

from callbacks.runtime.signals import Interrupted
from experiments.live import live_page
from experiments.live.live_page import LivePage
from experiments.live.trials.trial_client import ConnectionEnded, connected
from lightning_modules.errors import UserError
from tests.experiments.live.tiny import make_system

PATIENCE_S = 200.0  # of a loaded machine


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_it_is_told_to_end(
    signum: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(live_page, "load_speaking_model", lambda *_: make_system().model)
    port, handlers = free_port(), [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    told: list[str] = []
    is_over = threading.Event()

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("the page was told to end before it was there")

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, give_up)  # until the page takes its own, so that a failure ends this test alone

    async def converse() -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_over.is_set():
                try:
                    async with connected(f"http://localhost:{port}/") as client:
                        await client.send("say", text="Hello.", decodings=["mdm_4"])
                        told.extend(one["type"] for one in await client.read_until("done", "error"))
                        os.kill(os.getpid(), signum)
                        told.append(str((await client.socket.receive()).type.name))
                        return
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.02)

    def visit() -> None:
        try:
            asyncio.run(converse())
        except (TimeoutError, aiohttp.ClientError, ConnectionEnded) as error:
            told.append(repr(error))
            os.kill(os.getpid(), signum)  # the test fails, and does not wait for ever

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        with pytest.raises(Interrupted, match="the live page is closed") as ended:
            LivePage(tmp_path / "run", port=port, num_queries=0).run(tmp_path)
    finally:
        is_over.set()
        visitor.join()
        for one, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(one, handler)
    assert ended.value.exit_code == 128 + signum
    assert told[-2:] == ["done", "CLOSE"] and "audio" in told and "error" not in told
    printed = capsys.readouterr().out
    assert f"open http://localhost:{port}/ (Ctrl-C ends it)" in printed and "after the start of this process" in printed
    assert not [one for one in threading.enumerate() if one.name.startswith(("model", "listening"))]


def test_a_port_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="port is 0"):
        LivePage(tmp_path, port=0)
    with pytest.raises(UserError, match="num_queries is -1"):
        LivePage(tmp_path, num_queries=-1)
