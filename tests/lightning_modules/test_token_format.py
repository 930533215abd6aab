"""The format of speech tokens: what it refuses, and what it says of two that differ."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.errors import UserError
from lightning_modules.token_format import TokenFormat

NEUCODEC = TokenFormat("neucodec", 65_536, 50, 24_000)


@given(st.text(min_size=1), st.integers(1, 10**6), st.integers(1, 200), st.integers(1, 2000))
def test_a_record_gives_the_format_back(codec: str, size: int, rate_hz: int, samples: int) -> None:
    one = TokenFormat(codec, size, rate_hz, rate_hz * samples)
    assert TokenFormat.from_record({**one.as_record(), "written_by": "x"}, "codec.json") == one
    assert one.samples_per_token == samples


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("a", 0, 50, 16_000), "codebook_size is 0"),
        (("a", 10, 0.0, 16_000), "frame_rate_hz is 0.0"),
        (("a", 10, 50, 0), "sample_rate is 0"),
        (("a", 10, 75, 16_000), "a token of 'a' stands for 213.333 samples"),
    ],
)
def test_numbers_that_cannot_be_are_refused(values: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenFormat(*values)


@pytest.mark.parametrize("record", [[], {}, {**NEUCODEC.as_record(), "codebook_size": "65536"}, None])
def test_a_damaged_record_is_told_with_its_path(record: object) -> None:
    with pytest.raises(UserError, match="/data/codec.json: 'c.*' is .*does not tell which codec"):
        TokenFormat.from_record(record, "/data/codec.json")


def test_what_differs_is_named_with_both_values() -> None:
    NEUCODEC.refuse_other(TokenFormat("neucodec", 65_536, 50.0, 24_000), "the vocoder", "the corpus")
    xcodec2 = TokenFormat("xcodec2", 65_536, 50, 16_000)
    with pytest.raises(UserError) as caught:
        NEUCODEC.refuse_other(xcodec2, "the vocoder", "the corpus /data")
    assert str(caught.value).startswith(
        "the vocoder and the corpus /data have tokens of different codecs: codec 'neucodec' and 'xcodec2', "
        "sample_rate 24000 and 16000; use one codec for both"
    )
