"""The arithmetic behind the comparison table."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from callbacks.comparison.pictures import draw_mel, draw_pareto
from callbacks.comparison.rows import ORIGINAL, Record, format_table, is_repeating, summarize
from lightning_modules.evaluation.text_normalization import NORMALIZER_NAME
from lightning_modules.inference.spoken_reply import PartTimes, SpokenReply
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.unmasking import Unmasking


def make_reply(num_tokens: int, talker_s: float, text: str = "hello there", ended: bool = True) -> SpokenReply:
    times = PartTimes(0.01, 0.02, talker_s, 0.03)
    first = PartTimes(0.01, 0.005, talker_s / 2, 0.004)
    waveform = torch.ones(num_tokens * 640)
    return SpokenReply(text, torch.arange(num_tokens), waveform, [4, 4, 2], ended, times, first, 0.56)


def make_record(example_id: str, reply: SpokenReply, heard: str, gold: str = "hello there") -> Record:
    record = Record.of_reply("mdm_4", Decoding("mdm", 4, Unmasking(0.7)), example_id, gold, torch.arange(50), reply, 25)
    record.heard = heard
    return record


def test_a_row_sums_up_quality_speed_and_failures() -> None:
    records = [
        make_record("a", make_reply(50, 0.1), "hello there"),
        make_record("b", make_reply(50, 0.2), "hello where"),
        make_record("c", make_reply(0, 0.1, ended=False), ""),
        make_record("d", make_reply(100, 0.2, text="hello"), "hello", gold="hello there"),
    ]
    (row,) = summarize(records, token_rate_hz=25)
    assert (row.name, row.talker, row.steps, row.rule, row.num_examples) == ("mdm_4", "mdm", 4, "threshold 0.7", 4)
    assert row.wer_micro == pytest.approx(3 / 7), "a silent reply counts as all wrong"
    assert row.wer_interval[0] < row.wer_micro < row.wer_interval[1]
    assert row.wer_macro == pytest.approx((0 + 0.5 + 1 + 0) / 4)
    assert row.wer_gold_micro == pytest.approx(4 / 8), "the thinker's missing word counts against the gold reply"
    assert row.wer_gold_interval[0] < row.wer_gold_micro < row.wer_gold_interval[1]
    assert row.text_exact_match == 0.75
    assert row.tokens_per_s == pytest.approx((250 + 500) / 2)
    assert row.rtf == pytest.approx(25 / 375)
    assert row.forwards_per_block == 4, "the last block, which may be cut short, does not count"
    assert row.first_chunk_ms["total"] == pytest.approx(sum(v for k, v in row.first_chunk_ms.items() if k != "total"))
    assert row.first_chunk_ms["speech_encoder"] == pytest.approx(10)
    assert row.length_ratio == pytest.approx(200 / 200)
    assert row.failures == {"empty": 0.25, "truncated": 0.25, "repeating": 0.0}


def test_voices_are_shares_of_all_replies_silent_ones_too() -> None:
    records = [make_record(name, make_reply(50, 0.1), "hello there") for name in "abcd"]
    for record, voice in zip(records, ["new", "old", "new", ""], strict=True):
        record.voice = voice
    (row,) = summarize(records, 25, voices=("old", "new"))
    assert row.voices == {"old": 0.25, "new": 0.5}
    assert row.as_scalars()["decode/voice/new"] == 0.5
    assert [record.as_transcript()["voice"] for record in records] == ["new", "old", "new", ""]
    table = format_table([row]).splitlines()
    assert table[0].endswith("voice % old/new") and table[2].endswith("25/50")
    assert "voice" not in format_table(summarize(records, 25)).splitlines()[0], "nobody was asked"


def test_a_reference_has_quality_but_no_costs() -> None:
    record = Record.of_reference(ORIGINAL, "a", "hello there", torch.arange(9), 25)
    record.heard = "hello there"
    (row,) = summarize([record], 25)
    assert row.wer_micro == 0
    assert row.tokens_per_s is None and row.text_exact_match is None and row.first_chunk_ms == {}
    assert set(row.as_scalars()) == {
        "decode/wer_micro", "decode/wer_macro", "decode/wer_gold_micro", "decode/length_ratio",
        "decode/sound/repeated_share", "decode/failures/empty", "decode/failures/truncated",
        "decode/failures/repeating",
    }  # fmt: skip


@given(
    period=st.integers(1, 16), num_before=st.integers(0, 30), seed=st.integers(0, 99), rate_hz=st.sampled_from([25, 50])
)
def test_a_loop_of_two_seconds_is_found_at_any_period(period: int, num_before: int, seed: int, rate_hz: int) -> None:
    body = list(range(1000, 1000 + period))
    before = torch.randint(0, 900, (num_before,), generator=torch.Generator().manual_seed(seed)).tolist()
    loop = (body * 117)[: 2 * rate_hz + period]
    assert is_repeating(before + loop + [7], rate_hz)
    assert not is_repeating(before + loop[:-1], rate_hz)


def test_speech_without_a_loop_is_not_repeating() -> None:
    assert not is_repeating(list(range(300)), 25)
    assert not is_repeating([], 25)
    assert not is_repeating([5] * 30, 25), "a pause of 1.2 s is no loop"
    assert not is_repeating([5] * 60, 50), "nor is it at 50 tokens per second"
    assert is_repeating(list(range(32)) * 5, 50) and not is_repeating(list(range(33)) * 5, 50), "bodies of up to 0.64 s"


def test_the_table_and_the_pictures_show_every_row() -> None:
    record = Record.of_reference(ORIGINAL, "a", "hello", torch.arange(9), 25)
    rows = summarize([record, make_record("a", make_reply(50, 0.1), "hello there")], 25)
    table = format_table(rows)
    assert ORIGINAL in table and "mdm_4" in table and "threshold 0.7" in table and NORMALIZER_NAME in table
    axes = draw_pareto(rows).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [ORIGINAL, "mdm (threshold 0.7)"]
    picture = draw_mel(torch.sin(torch.arange(16_000) * 0.3), 16_000, "hum").axes[0]
    brightest = picture.images[0].get_array().mean(axis=1).argmax()  # type: ignore[union-attr]
    assert 12 < brightest < 30, "a tone of 764 Hz lies in the lower middle of the mel scale"
