"""The protocol of the live server in thirty lines: asks a typed query and writes the reply as a wav file."""

import asyncio
import json
import struct
import sys
import wave

import aiohttp


async def ask(address: str, text: str, decoding: str, file: str) -> str:
    """Return the reply as text; its speech is in the file."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}talk") as socket:
        await socket.send_json({"type": "hello"})
        pcm, rate_hz, reply = b"", 0, ""
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                assert struct.unpack_from("<BBHI", message.data)[0] == 1
                pcm += message.data[8:]
                continue
            content = json.loads(message.data)
            if content["type"] == "welcome":
                rate_hz = content["rate_hz"]
                await socket.send_json({"type": "say", "text": text, "decodings": [decoding]})
            elif content["type"] == "reply":
                reply = content["text"]
            elif content["type"] in ("done", "error"):
                break
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate_hz, 0, "NONE", ""))
        out.writeframes(pcm)
    return reply


if __name__ == "__main__":
    print(asyncio.run(ask(*sys.argv[1:])))
