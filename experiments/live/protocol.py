"""The messages between a client and the live server: control as JSON, audio as binary frames."""

from __future__ import annotations

import json
import struct
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import from_pcm, to_pcm
from lightning_modules.errors import UserError

VERSION = 1
MAX_MESSAGE_BYTES = 64 * 1024  # of one message of a client
MAX_TEXT_CHARACTERS = 300
MAX_DECODINGS = 2
RATES_HZ = (8_000, 96_000)
SAMPLE_BYTES = {"pcm16": 2, "float32": 4}

# In front of the samples of a reply: kind, index of its decoding in the query's list, number of the chunk, turn.
AUDIO_HEADER = struct.Struct("<BBHI")
AUDIO_KIND = 1


@dataclass(frozen=True)
class Hello:
    """The first message of a client; `token` if the server asks for one."""

    token: str = ""


@dataclass(frozen=True)
class Say:
    """A typed query."""

    text: str
    decodings: list[str]

    def __post_init__(self) -> None:
        """Refuse a text that cannot be spoken."""
        if not any(character.isalnum() for character in self.text):
            raise UserError("the text has no words; type a question")
        if len(self.text) > MAX_TEXT_CHARACTERS:
            raise UserError(f"the text has {len(self.text)} characters; give at most {MAX_TEXT_CHARACTERS}")


@dataclass(frozen=True)
class Ask:
    """One of the test queries, by its id."""

    id: str
    decodings: list[str]


@dataclass(frozen=True)
class Listen:
    """Audio of a query follows, in frames of samples, until `end`, or until silence if `auto_end` is set."""

    decodings: list[str]
    rate_hz: int = 16_000
    samples: str = "pcm16"
    auto_end: bool = False

    def __post_init__(self) -> None:
        """Refuse audio that cannot be read."""
        if not RATES_HZ[0] <= self.rate_hz <= RATES_HZ[1]:
            raise UserError(f"rate_hz is {self.rate_hz}; give a number from {RATES_HZ[0]} to {RATES_HZ[1]}")
        if self.samples not in SAMPLE_BYTES:
            raise UserError(f"samples is {self.samples!r}; give one of {list(SAMPLE_BYTES)}")


@dataclass(frozen=True)
class End:
    """The query's audio is complete."""


@dataclass(frozen=True)
class Stop:
    """Give up the query and its replies."""


Message = Hello | Say | Ask | Listen | End | Stop
MESSAGES: dict[str, type[Message]] = {
    "hello": Hello,
    "say": Say,
    "ask": Ask,
    "listen": Listen,
    "end": End,
    "stop": Stop,
}


def parse_message(text: str) -> Message:
    """Read a control message.

    Args:
        text: A JSON object with a `type` and the fields of that message, no others.

    Raises:
        UserError: If it is anything else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"a message is not JSON: {str(error)[:100]}") from error
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        raise UserError(f"a message must be an object with a 'type', one of {list(MESSAGES)}")
    kind = content.pop("type")
    if kind not in MESSAGES:
        raise UserError(f"there is no message {kind[:40]!r}; give one of {list(MESSAGES)}")
    known = {one.name: one for one in fields(MESSAGES[kind])}
    for name, value in content.items():
        if name not in known:
            raise UserError(f"{kind}: there is no field {name[:40]!r}; it has {list(known)}")
        if not _is_of(value, str(known[name].type)):
            raise UserError(f"{kind}: {name} must be of type {known[name].type}")
    for name, one in known.items():
        if name not in content and one.default is MISSING:
            raise UserError(f"{kind}: {name} is missing")
    message = MESSAGES[kind](**content)
    if isinstance(message, Say | Ask | Listen):
        names = message.decodings
        if not 1 <= len(names) <= MAX_DECODINGS or len(set(names)) < len(names):
            raise UserError(f"{kind}: give 1 to {MAX_DECODINGS} different decodings")
    return message


def _is_of(value: Any, kind: str) -> bool:
    if kind == "list[str]":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return type(value) is {"str": str, "int": int, "bool": bool}[kind]


def parse_audio(data: bytes, samples: str) -> np.ndarray:
    """Read an audio frame of a query.

    Args:
        data: Samples, little-endian.
        samples: "pcm16" or "float32".

    Returns:
        ``(S,) float32`` in [-1, 1].

    Raises:
        UserError: If it is empty, ends within a sample, or holds values that are no numbers.
    """
    size = SAMPLE_BYTES[samples]
    if not data or len(data) % size:
        raise UserError(f"an audio frame has {len(data)} bytes; give a multiple of {size}, the size of a sample")
    if samples == "pcm16":
        return from_pcm(torch.from_numpy(np.frombuffer(data, "<i2").astype(np.int16))).numpy()
    values = np.frombuffer(data, "<f4")
    if not np.isfinite(values).all():
        raise UserError("an audio frame holds values that are no numbers, or infinite")
    return np.clip(values, -1.0, 1.0).astype(np.float32)


def audio_frame(samples: Tensor, index: int, chunk: int, turn: int) -> bytes:
    """Make the binary frame of a chunk.

    Args:
        samples: ``(n,) float32``; what is beyond [-1, 1] is clipped.
        index: Of its decoding in the query's list.
        chunk: Its number in the reply, from 0.
        turn: The query's number.

    Returns:
        Header and PCM16 samples.
    """
    pcm = to_pcm(samples.float()).cpu().numpy()
    return AUDIO_HEADER.pack(AUDIO_KIND, index, chunk % 2**16, turn % 2**32) + pcm.astype("<i2").tobytes()
