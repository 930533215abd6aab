"""Whatever a client sends is read or refused, and nothing else happens."""

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.live.protocol import (
    AUDIO_HEADER,
    MESSAGES,
    Ask,
    End,
    Hello,
    Listen,
    Say,
    audio_frame,
    parse_audio,
    parse_message,
)
from lightning_modules.errors import UserError

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["text", "decodings", "id", "rate_hz", "samples", "auto_end", "token", "x"])
ALMOST = st.builds(
    lambda kind, rest: {"type": kind, **rest},
    st.sampled_from([*MESSAGES, "x"]),
    st.dictionaries(FIELDS, ANYTHING | st.just(["ntp"]), max_size=3),
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "hello"}', Hello()),
        ('{"type": "hello", "token": "x"}', Hello("x")),
        ('{"type": "say", "text": "Hi?", "decodings": ["ntp"]}', Say("Hi?", ["ntp"])),
        ('{"type": "ask", "id": "a", "decodings": ["a", "b"]}', Ask("a", ["a", "b"])),
        ('{"type": "listen", "decodings": ["a"], "rate_hz": 48000}', Listen(["a"], 48_000)),
        ('{"type": "end"}', End()),
    ],
)
def test_messages_are_read(text: str, message: object) -> None:
    assert parse_message(text) == message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[" * 10_000, "is not JSON"),
        ("[]", "must be an object with a 'type'"),
        ('{"type": ["say"]}', "must be an object with a 'type'"),
        ('{"type": "sing"}', "there is no message 'sing'"),
        ('{"type": "say", "decodings": ["a"]}', "text is missing"),
        ('{"type": "say", "text": 1, "decodings": ["a"]}', "text must be of type str"),
        ('{"type": "say", "text": "?!", "decodings": ["a"]}', "has no words"),
        (json.dumps({"type": "say", "text": "a" * 301, "decodings": ["a"]}), "has 301 characters; give at most 300"),
        ('{"type": "say", "text": "a", "decodings": []}', "give 1 to 2 different decodings"),
        ('{"type": "say", "text": "a", "decodings": ["a", "a"]}', "give 1 to 2 different decodings"),
        ('{"type": "end", "more": 1}', "there is no field 'more'"),
        ('{"type": "listen", "decodings": ["a"], "rate_hz": 1}', "rate_hz is 1; give a number from 8000 to 96000"),
        ('{"type": "listen", "decodings": ["a"], "rate_hz": true}', "rate_hz must be of type int"),
        ('{"type": "listen", "decodings": ["a"], "samples": "mp3"}', "give one of"),
    ],
)
def test_what_is_wrong_with_a_message_is_told(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_message(text)


@settings(max_examples=50)
@given(st.text(max_size=40) | ANYTHING.map(json.dumps) | ALMOST.map(json.dumps))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        message = parse_message(text)
    except UserError:
        return
    assert type(message) in MESSAGES.values()


@settings(max_examples=50)
@given(st.binary(max_size=64), st.sampled_from(["pcm16", "float32"]))
def test_any_audio_is_read_or_refused(data: bytes, samples: str) -> None:
    try:
        waveform = parse_audio(data, samples)
    except UserError:
        return
    assert waveform.dtype == np.float32 and len(waveform) > 0 and np.abs(waveform).max() <= 1.0


def test_audio_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="no numbers"):
        parse_audio(struct.pack("<2f", 0.0, float("nan")), "float32")
    with pytest.raises(UserError, match="3 bytes; give a multiple of 2"):
        parse_audio(b"abc", "pcm16")


def test_chunks_come_back_from_their_frames() -> None:
    samples = torch.tensor([0.0, 0.5, -1.0, 2.0])
    frame = audio_frame(samples, 1, 3, 7)
    assert AUDIO_HEADER.unpack_from(frame) == (1, 1, 3, 7)
    found = parse_audio(frame[AUDIO_HEADER.size :], "pcm16")
    np.testing.assert_allclose(found, samples.clamp(-1, 1), atol=2**-15)


@settings(max_examples=30)
@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=20))
def test_a_query_that_is_sent_back_keeps_every_sample(values: list[int]) -> None:
    pcm = np.array(values, "<i2").tobytes()
    assert audio_frame(torch.from_numpy(parse_audio(pcm, "pcm16")), 0, 0, 1)[AUDIO_HEADER.size :] == pcm
