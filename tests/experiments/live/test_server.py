"""The live server answers, streams, stops, queues, and lets in only whom it may."""

import asyncio
import json
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch

from experiments.live.access import Access
from experiments.live.protocol import AUDIO_HEADER, parse_audio
from experiments.live.server import LiveServer, ServerThread
from experiments.live.system import Limits
from experiments.live.trials.trial_client import TrialClient, connected
from lightning_modules.errors import UserError
from lightning_modules.inference.pipelines import Overlapped
from lightning_modules.inference.timeline import STAGES
from tests.experiments.live.small_client import ask
from tests.experiments.live.tiny import DECODINGS, make_system, serving, talk


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with serving() as one:
        yield one


def samples_of(messages: list[dict], index: int) -> np.ndarray:
    frames = [one["data"] for one in messages if one["type"] == "audio"]
    return np.concatenate(
        [parse_audio(data[8:], "pcm16") for data in frames if AUDIO_HEADER.unpack_from(data)[1] == index]
    )


def test_two_decodings_of_a_test_query_are_those_of_the_model(server: ServerThread) -> None:
    async def conversation(client: TrialClient) -> list[dict]:
        await client.send("ask", id="test_1", decodings=["ntp", "mdm_4"])
        return await client.read_until("done")

    messages = talk(server, conversation)
    told = {kind: [one for one in messages if one["type"] == kind] for kind in {one["type"] for one in messages}}
    assert told.keys() == {"query", "begin", "text", "audio", "first_chunk", "block", "reply", "heard", "done"}
    system = server.server.system
    for index, name in enumerate(("ntp", "mdm_4")):
        query = torch.from_numpy(system.query_of["test_1"].waveform)
        expected = system.model.responder.answer(system.model.responder.write_text(query), DECODINGS[name])
        np.testing.assert_allclose(samples_of(messages, index), expected.waveform, atol=2**-15)
        blocks = [one for one in told["block"] if one["index"] == index]
        assert [token for one in blocks for token in one["tokens"]] == expected.speech_tokens.tolist()
        assert [one["passes"] for one in blocks] == expected.num_forwards
        order = [step for one in blocks for step in one["order"] or []]
        assert order == expected.order.tolist() and (name == "ntp") == (order == [])
        (reply,) = (one for one in told["reply"] if one["index"] == index)
        assert reply["text"] == expected.text and reply["is_whole"] == expected.ended
        assert [one["text"] for one in told["text"] if one["index"] == index][-1] == expected.text
        (first,) = (one for one in told["first_chunk"] if one["index"] == index)
        parts = first["stages_ms"]
        spans = [span for span in reply["spans"] if span[0] in ("talker", "vocoder")]
        assert [span[:2] for span in spans if span[0] == "talker"] == [["talker", k] for k in range(len(blocks))]
        assert len(spans) == 2 * len(blocks) and all(start <= end for _, _, start, end in reply["spans"])
        assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"], abs=0.3) and parts["talker"] > 0
    assert told["heard"] == [{"type": "heard", "turn": 1, "text": "8000 samples", "by": "thinker"}]
    kinds = [one["type"] for one in messages]
    assert kinds.index("audio") < kinds.index("reply"), "it is heard while it is being made"


def test_the_small_client_writes_the_reply_to_a_typed_query(server: ServerThread, tmp_path: Path) -> None:
    reply = asyncio.run(ask(server.address, "Who are you?", "mdm_4", str(tmp_path / "reply.wav")))
    assert reply
    with wave.open(str(tmp_path / "reply.wav")) as file:
        assert file.getframerate() == 16_000 and file.getnframes() > 16_000
    lines = Path(ask.__code__.co_filename).read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line.strip() and not line.strip().startswith(('"""', "import"))]
    assert len(code) <= 30


def test_a_query_by_microphone_is_heard_as_it_was_spoken(server: ServerThread) -> None:
    speech = server.server.system.query_of["test_2"].waveform

    async def conversation(client: TrialClient) -> tuple[list[dict], list[dict]]:
        await client.send("ask", id="test_2", decodings=["mdm_4"])
        asked = await client.read_until("done")
        await client.send("listen", decodings=["mdm_4"], samples="float32")
        for frame in np.array_split(speech, 9):
            await client.socket.send_bytes(frame.tobytes())
        await client.send("end")
        return asked, await client.read_until("done")

    asked, spoken = talk(server, conversation)
    np.testing.assert_array_equal(samples_of(spoken, 0), samples_of(asked, 0))
    assert [one["type"] for one in spoken[:3]] == ["listening", "query_end", "query"]
    assert {one["turn"] for one in spoken if "turn" in one} == {2}


def test_stop_and_a_new_query_end_what_is_under_way() -> None:
    with serving(max_speech_s=60.0) as server:

        async def conversation(client: TrialClient) -> list[dict]:
            await client.send("ask", id="test_0", decodings=["ntp", "mdm_4"])
            await client.read_until("audio")
            await client.send("stop")
            await client.read_until("stopped")
            await client.send("ask", id="test_0", decodings=["ntp"])
            await client.read_until("audio")
            await client.send("listen", decodings=["ntp"])  # somebody speaks while a reply is heard
            between = await client.read_until("listening")
            await client.send("stop")
            return [*between, *await client.read_until("stopped")]

        messages = talk(server, conversation)
        assert {one["type"] for one in messages} >= {"stopped", "listening"}
        assert "done" not in {one["type"] for one in messages}
        assert len(server.server.system.queue) == 0


def test_a_reply_whose_parts_work_at_the_same_time_is_told_alike_and_stops_when_told(server: ServerThread) -> None:
    async def ask_it(client: TrialClient) -> list[dict]:
        return await client.ask("test_1", "mdm_4")

    async def stop_and_ask(client: TrialClient) -> list[dict]:
        await client.send("ask", id="test_0", decodings=["ntp"])
        await client.read_until("audio")
        await client.send("stop")
        await client.read_until("stopped")
        return await ask_it(client)

    expected = talk(server, ask_it)
    with serving(pipeline=Overlapped()) as overlapped:
        found = talk(overlapped, stop_and_ask)
        assert not {thread.name for thread in threading.enumerate()} & set(STAGES)
    np.testing.assert_array_equal(samples_of(found, 0), samples_of(expected, 0))
    for kind, names in (("block", ("block", "tokens", "order", "passes")), ("reply", ("text", "is_whole", "audio_s"))):
        one, other = (
            [[message[name] for name in names] for message in messages if message["type"] == kind]
            for messages in (found, expected)
        )
        assert one == other
    kinds = [one["type"] for one in found]
    assert kinds.index("first_chunk") < kinds.index("reply") and kinds[::-1].index("text") > kinds[::-1].index("reply")


def test_clients_wait_for_each_other_and_know_their_place(server: ServerThread) -> None:
    async def ask_one() -> tuple[list[int], str]:
        async with connected(server.address) as client:
            messages = await client.ask("test_0", "ntp")
            places = [one["place"] for one in messages if one["type"] == "queued"]
            return places, next(one["text"] for one in messages if one["type"] == "reply")

    async def all_of_them() -> list[tuple[list[int], str]]:
        return await asyncio.gather(*(ask_one() for _ in range(6)))

    found = asyncio.run(asyncio.wait_for(all_of_them(), 60))
    assert len({text for _, text in found}) == 1, "one query has one reply"
    assert all(places == sorted(places, reverse=True) for places, _ in found)
    assert max(places[0] for places, _ in found if places) >= 3


def test_mistakes_are_told_and_the_connection_goes_on(server: ServerThread) -> None:
    async def conversation(client: TrialClient) -> list[str]:
        told = []
        await client.socket.send_str("{")
        told.append((await client.read())["message"])
        await client.send("ask", id="x", decodings=["ntp"])
        told.append((await client.read())["message"])
        await client.send("ask", id="test_0", decodings=["nobody"])
        told.append((await client.read())["message"])
        await client.send("end")
        told.append((await client.read())["message"])
        await client.send("listen", decodings=["ntp"], samples="float32")
        await client.socket.send_bytes(np.array([np.nan], np.float32).tobytes())
        told.append((await client.read_until("error"))[-1]["message"])
        await client.send("listen", decodings=["ntp"])
        await client.socket.send_bytes(np.zeros(16_000 * 7, np.int16)[:30_000].tobytes())
        await client.socket.send_bytes(b"x")
        told.append((await client.read_until("error"))[-1]["message"])
        await client.send("ask", id="test_0", decodings=["ntp"])
        assert (await client.read_until("done"))[-1]
        return told

    told = talk(server, conversation)
    parts = ["is not JSON", "no test query 'x'", "no decoding 'nobody'", "no query to end", "no numbers", "1 bytes"]
    assert len(told) == len(parts) and all(part in one for part, one in zip(parts, told, strict=True))


def test_queries_that_are_too_long_are_refused(server: ServerThread) -> None:
    async def conversation(client: TrialClient) -> list[str]:
        told = []
        for num_seconds in (60, 10):  # more than the server takes, and more than this thinker takes
            await client.send("listen", decodings=["ntp"])
            for _ in range(num_seconds):
                await client.socket.send_bytes(bytes(32_000))
            if num_seconds == 10:
                await client.send("end")
            told.append((await client.read_until("error"))[-1]["message"])
        await client.send("ask", id="test_0", decodings=["ntp"])
        await client.read_until("done")
        return told

    long, for_thinker = talk(server, conversation)
    assert long == "the query is longer than 30 s; ask a shorter one" and "takes up to 6.00 s" in for_thinker


def status_of(address: str, path: str = "", **headers: str) -> tuple[int, str]:
    async def get() -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"{address}{path}", headers=headers) as response:
            return response.status, await response.text()

    return asyncio.run(get())


def test_only_its_own_files_are_served(server: ServerThread) -> None:
    status, page = status_of(server.address)
    assert status == 200 and "<title>" in page
    for path in ("page.js", "page.css", "player_worklet.js"):
        assert status_of(server.address, path)[0] == 200
    for path in ("server.py", "../server.py", "%2e%2e/server.py", "..%2fserver.py", "etc/passwd", "page/page.js"):
        assert status_of(server.address, path)[0] == 404
    links = {part.split('"')[0] for part in page.split('href="')[1:]} | {"page.js"}
    assert all(status_of(server.address, link)[0] == 200 for link in links)


def test_pages_of_other_sites_are_not_let_in(server: ServerThread) -> None:
    host = server.address.removeprefix("http://").rstrip("/")
    for path in ("", "talk"):
        assert status_of(server.address, path, Origin="https://evil.example")[0] == 403
        assert status_of(server.address, path, Origin="null")[0] == 403
        assert status_of(server.address, path, Host="evil.example")[0] == 403
        assert status_of(server.address, path, Host="[::")[0] == 403
    assert status_of(server.address, "", Origin=f"http://{host}")[0] == 200
    assert status_of(server.address, "talk", Origin=f"http://{host}")[0] == 400, "let in, but no WebSocket"


def test_elsewhere_a_token_is_asked_for() -> None:
    access = Access("0.0.0.0", allowed_hosts=["proxy.example"])
    assert len(access.token) > 16 and Access("127.0.0.1").token == ""
    with serving(access=access, limits=Limits(patience_s=0.3)) as server:
        address = server.address.split("#")[0].replace("0.0.0.0", "127.0.0.1")
        assert server.address.endswith(f"#token={access.token}")

        async def greet(*messages: str) -> int | str | None:
            async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}talk") as socket:
                for message in messages:
                    await socket.send_str(message)
                received = await socket.receive()
                if received.type == aiohttp.WSMsgType.CLOSE:
                    return socket.close_code
                return json.loads(received.data)["type"]

        assert asyncio.run(greet('{"type": "hello", "token": "x"}')) == 4401
        assert asyncio.run(greet('{"type": "hello"}')) == 4401
        assert asyncio.run(greet('{"type": "stop"}')) == "error"
        assert asyncio.run(greet()) == 4408, "nobody may keep a connection without a word"
        assert asyncio.run(greet(json.dumps({"type": "hello", "token": access.token}))) == "welcome"
        assert status_of(address, "", Host="proxy.example")[0] == 200
        assert status_of(address, "", Host="evil.example")[0] == 403


def test_more_clients_than_allowed_are_sent_away() -> None:
    with serving(Limits(max_clients=1)) as server:

        async def conversation(client: TrialClient) -> int:
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await session.ws_connect(f"{server.address}talk")
            return refused.value.status

        assert talk(server, conversation) == 503


def test_a_taken_port_is_told(server: ServerThread) -> None:
    port = int(server.address.rstrip("/").rsplit(":", 1)[1])
    again = LiveServer(make_system(), "127.0.0.1", port, Access("127.0.0.1"))
    with pytest.raises(UserError, match=f"cannot serve at 127.0.0.1:{port}: .*set job.init_args.port to another"):
        asyncio.run(again.start())
