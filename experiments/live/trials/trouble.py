"""What clients may do to a server, on purpose or not; each trial gives what became of it."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import struct
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import psutil

from experiments.live.protocol import MAX_MESSAGE_BYTES, MESSAGES
from experiments.live.server import ServerThread
from experiments.live.trials.trial_client import ConnectionEnded, connected

LONG_QUERY_S = 60
SETTLE_S = 30.0
MESSAGES_AT_A_TIME = 50


def resident_mb() -> float:
    """Measure the resident memory of this process, in MB."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


async def crowd(address: str, num_clients: int, queries: list[str], decoding: str) -> dict[str, float]:
    """Let many clients ask at once.

    Returns:
        ``answered``, clients that got their whole reply; ``largest_place``, the last place in line that was told;
        ``most_displaced``, how far one was served from its place in the order of arrival, as clients saw it;
        ``seconds`` until the last one was done.
    """
    order: list[int] = []
    arrived: list[int] = []
    largest = 0
    start = time.perf_counter()

    async def one(number: int) -> bool:
        nonlocal largest
        async with connected(address) as client:
            arrived.append(number)
            await client.send("ask", id=queries[number % len(queries)], decodings=[decoding])
            told = await client.read_until("begin", "error")
            order.append(number)
            largest = max([largest, *(message["place"] for message in told if message["type"] == "queued")])
            return told[-1]["type"] == "begin" and (await client.read_until("done", "error"))[-1]["type"] == "done"

    answered = await asyncio.gather(*(one(number) for number in range(num_clients)))
    displaced = max((abs(order.index(number) - arrived.index(number)) for number in order), default=0)
    return {
        "answered": float(sum(answered)),
        "largest_place": float(largest),
        "most_displaced": float(displaced),
        "seconds": time.perf_counter() - start,
    }


async def long_query(address: str, query: str, decoding: str) -> dict[str, float]:
    """Send a query of a minute, and a usual one behind it on the same connection.

    Returns:
        ``is_refused`` with a message, ``is_answered``: the one behind it.
    """
    async with connected(address) as client:
        await client.send("listen", decodings=[decoding])
        for _ in range(LONG_QUERY_S * 10):
            await client.socket.send_bytes(bytes(3200))
        await client.send("end")
        told = (await client.read_until("error", "done"))[-1]
        answered = await client.ask(query, decoding)
        while answered[-1]["type"] == "error":  # that there was no query to end
            answered = await client.read_until("done", "error")
        return {
            "is_refused": float(told["type"] == "error" and "longer than" in told["message"]),
            "is_answered": float(answered[-1]["type"] == "done"),
        }


async def silent_reader(server: ServerThread, query: str, decoding: str) -> dict[str, float]:
    """Let a client ask and never read, while another one is answered.

    Returns:
        ``is_given_up`` by the server, after ``seconds``; ``is_answered``: the other one.
    """
    host, port = server.address.removeprefix("http://").rstrip("/").rsplit(":", 1)
    before, start = server.server.num_clients, time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    head = f"GET /talk HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(f"{head}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    ask = json.dumps({"type": "ask", "id": query, "decodings": [decoding]})
    for text in ('{"type": "hello"}', ask):
        writer.write(_masked_frame(text.encode()))
    await writer.drain()
    async with connected(server.address) as client:
        answered = await client.ask(query, decoding)
    given_up = await _settles(lambda: server.server.num_clients <= before)
    seconds = time.perf_counter() - start
    writer.close()
    return {
        "is_given_up": float(given_up),
        "is_answered": float(answered[-1]["type"] == "done"),
        "seconds": seconds,
    }


def _masked_frame(payload: bytes) -> bytes:
    """Make a text frame of a client, with a mask of zeros."""
    assert len(payload) < 126
    return bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload


async def disconnects(
    server: ServerThread, num_connections: int, at_once: int, queries: list[str], decodings: list[str], seed: int
) -> dict[str, float]:
    """Let clients leave at random moments, politely or not, and look at what they leave behind.

    Returns:
        ``tasks_before`` and ``tasks_after``, of the server; ``clients_after``; ``rss_first_mb`` after a fifth of the
        connections, and ``rss_last_mb`` after all.
    """
    generator = random.Random(seed)
    await _settles(lambda: server.server.num_clients == 0)
    tasks_before, memory = server.num_tasks(), []

    async def one(number: int) -> None:
        moments = ("greeting", "listening", "asking", "replying")
        moment, pause_s = generator.choice(moments), generator.random() * 0.05
        names = generator.sample(decodings, generator.randint(1, len(decodings)))
        async with aiohttp.ClientSession() as session:
            socket = await session.ws_connect(f"{server.address}talk", max_msg_size=0)
            if moment != "greeting":
                await socket.send_str('{"type": "hello"}')
            if moment == "listening":
                await socket.send_str(json.dumps({"type": "listen", "decodings": names, "auto_end": number % 2 == 0}))
                await socket.send_bytes(generator.randbytes(3200))
            elif moment in ("asking", "replying"):
                query = generator.choice(queries)
                await socket.send_str(json.dumps({"type": "ask", "id": query, "decodings": names}))
                while moment == "replying" and (await socket.receive()).type == aiohttp.WSMsgType.TEXT:
                    pass  # until the first audio
            await asyncio.sleep(pause_s)
            if generator.random() < 0.5:
                await socket.close()  # else the session ends, and with it the connection without a farewell

    for first in range(0, num_connections, at_once):
        await asyncio.gather(*(one(number) for number in range(first, min(first + at_once, num_connections))))
        memory.append(resident_mb())
    await _settles(lambda: server.server.num_clients == 0)
    return {
        "tasks_before": float(tasks_before),
        "tasks_after": float(server.num_tasks()),
        "clients_after": float(server.server.num_clients),
        "rss_first_mb": memory[max(0, len(memory) // 5 - 1)],
        "rss_last_mb": resident_mb(),
    }


async def random_messages(
    address: str, num_messages: int, query: str, decodings: list[str], seed: int
) -> dict[str, float]:
    """Send messages of all kinds, almost right and utterly wrong, and ask a usual query behind them.

    Returns:
        ``sent``; ``errors_told``; ``connections`` that it took, since one that is sent too much at once is closed;
        ``is_answered``: the query behind them.
    """
    generator = random.Random(seed)
    sent = told = connections = 0
    while sent < num_messages:
        connections += 1
        try:
            async with connected(address) as client:
                while sent < num_messages:
                    for _ in range(min(MESSAGES_AT_A_TIME, num_messages - sent)):
                        sent += 1
                        message = _random_message(generator, query, decodings)
                        if isinstance(message, bytes):
                            await client.socket.send_bytes(message)
                        else:
                            await client.socket.send_str(message)
                    await client.send("sing")  # an error with a known text: all before it was dealt with
                    while "'sing'" not in (message := await client.read()).get("message", ""):
                        told += message["type"] == "error"
        except (ConnectionEnded, ConnectionError, aiohttp.ClientError):
            continue
    async with connected(address) as client:
        answered = await client.ask(query, decodings[0])
    return {
        "sent": float(sent),
        "errors_told": float(told),
        "connections": float(connections),
        "is_answered": float(answered[-1]["type"] == "done"),
    }


def _random_message(generator: random.Random, query: str, decodings: list[str]) -> str | bytes:
    names = generator.sample(decodings, 1)
    choice = generator.random()
    if choice < 0.003:
        return generator.randbytes(MAX_MESSAGE_BYTES + generator.randint(1, 9))  # too large
    if choice < 0.2:
        return generator.randbytes(generator.randint(0, 400))
    if choice < 0.3:
        values = [generator.choice((0.0, 1e30, float("nan"), float("inf"))) for _ in range(8)]
        return struct.pack("<8f", *values)
    if choice < 0.4:
        samples = generator.choice(("pcm16", "float32", "mp3"))
        rate_hz = generator.choice((16_000, 44_100, -1, 10**9))
        return json.dumps({"type": "listen", "decodings": names, "samples": samples, "rate_hz": rate_hz})
    if choice < 0.5:
        return generator.choice(("[" * 5000, "{", "null", '"stop"', "\ufffd\x00", "{}", '{"type": {}}', "9" * 400))
    if choice < 0.7:
        values = (None, 1, -1.5, "x", "", [], [None], {}, names, ["nobody"], True)
        kinds = generator.choice([*MESSAGES, "sing a song"])
        names_of_fields = ("text", "decodings", "id", "rate_hz", "samples", "auto_end", "token", "more")
        chosen = generator.sample(names_of_fields, generator.randint(0, 4))
        return json.dumps({"type": kinds, **{name: generator.choice(values) for name in chosen}})
    if choice < 0.72:
        return json.dumps({"type": "ask", "id": query, "decodings": names})
    return json.dumps({"type": generator.choice(("stop", "end", "hello"))})


async def _settles(is_so: Callable[[], Any]) -> bool:
    give_up_s = time.monotonic() + SETTLE_S
    while not is_so():
        if time.monotonic() > give_up_s:
            return False
        await asyncio.sleep(0.05)
    return True
