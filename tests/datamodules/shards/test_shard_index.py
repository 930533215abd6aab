"""Queries and speech tokens are read as the libraries for all formats read them."""

import io

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batch import from_pcm, to_pcm
from datamodules.shards.shard_files import decode_query
from datamodules.shards.shard_index import pack_units, unpack_units


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["WAV/PCM_16", "WAV/PCM_24", "WAV/FLOAT", "WAV/PCM_U8", "FLAC/PCM_16"])
def test_queries_of_any_format(kind: str, channels: int) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (500, channels))
    content = io.BytesIO()
    soundfile.write(content, samples, 22_050, format=kind.split("/")[0], subtype=kind.split("/")[1])
    expected, _ = soundfile.read(io.BytesIO(content.getvalue()), dtype="float32", always_2d=True)
    found, rate_hz = decode_query(content.getvalue())
    assert (rate_hz, found.dtype) == (22_050, torch.int16)
    step = 0.0 if kind.endswith("PCM_16") and channels == 1 else 2**-16 + 1e-6
    np.testing.assert_allclose(from_pcm(found), expected.mean(axis=1), rtol=0, atol=step)


def test_what_is_louder_than_full_scale_is_clipped() -> None:
    assert to_pcm(torch.tensor([-2.0, -1.0, 0.25, 1.0, 3.0])).tolist() == [-32768, -32768, 8192, 32767, 32767]


@given(st.lists(st.integers(0, 2**31 - 1), max_size=300))
def test_units_come_back(units: list[int]) -> None:
    content = pack_units(np.array(units, dtype=np.int64))
    assert unpack_units(content).tolist() == units
    assert np.load(io.BytesIO(content)).tolist() == units, "any tool reads them"


def test_units_that_others_wrote() -> None:
    content = io.BytesIO()
    np.save(content, np.arange(5, dtype=np.int16))
    assert unpack_units(content.getvalue()).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError):
        unpack_units(b"no array")
