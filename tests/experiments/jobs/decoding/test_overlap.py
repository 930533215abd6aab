"""Whole replies of a benchmark are the same under each pipeline, and are told by the parts that worked on them."""

from itertools import pairwise

import pytest
import torch

from experiments.jobs.decoding.executions import Static, Stepwise
from experiments.jobs.decoding.first_chunk import FirstChunk
from experiments.jobs.decoding.overlap import PipelineRounds, speak_whole
from experiments.jobs.decoding.replies import Case
from experiments.jobs.decoding.report.lanes import draw_lanes
from experiments.jobs.decoding.report.tables import pipeline_table
from experiments.jobs.decoding.talkers import TalkerSizes, ban_eos, draw_talkers, draw_text
from lightning_modules.errors import UserError
from lightning_modules.inference.pipelines import Overlapped, Sequential
from lightning_modules.inference.timeline import STAGES, TALKER, THINKER, VOCODER
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from tests.lightning_modules.thinker.tiny import make_language_model, make_speech_encoder

SMALL = TalkerSizes(16, 24, 2, num_layers=1, num_codes=2000, hidden_size=24)
CPU, NUM_BLOCKS = torch.device("cpu"), 4


@pytest.fixture(scope="module")
def parts() -> FirstChunk:
    """Small parts around a talker."""
    codec = SpeechCodec(channels=(16, 16, 24))
    parts = FirstChunk(
        make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), CodecVocoder(codec, 15), query_s=0.5
    )
    parts.move_to(CPU)
    return parts


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Two decodings, one of them under two executions."""
    talkers = draw_talkers(SMALL, {"ntp", "mdm"}, torch.float32, CPU, 0)
    ban_eos(talkers)
    cases = []
    for name, talker, steps, how in (
        ("ntp", "ntp", 16, Stepwise()),
        ("mdm_4", "mdm", 4, Stepwise()),
        ("mdm_4", "mdm", 4, Static()),
    ):
        one = talkers[talker]
        runner = how.prepare(one, Decoding(talker, steps), NUM_BLOCKS)
        assert runner is not None
        text = draw_text(one, NUM_BLOCKS, torch.float32, CPU)
        cases.append(Case(name, type(how).__name__.lower(), runner, text, NUM_BLOCKS, one.block_size))
    return cases


def test_replies_are_spoken_whole_under_each_pipeline_in_turn(parts: FirstChunk, cases: list[Case]) -> None:
    measured = PipelineRounds(("ntp", "mdm_4", "mdm_9"), num_rounds=2).measure(parts, cases)
    assert list(measured) == ["ntp, stepwise", "mdm_4, static"], "the last execution that knows a decoding"
    for own in measured.values():
        assert list(own) == ["sequential", "overlapped"]
        assert own["sequential"]["seconds_against_first"] is None and own["overlapped"]["seconds_against_first"][0] > 0
        for one in own.values():
            assert 0 < one["first_chunk_s"][0] < one["seconds"][0]
            assert one["first_chunk_parts_ms"]["total"] == pytest.approx(1000 * one["heard_s"])
            stages = [span["stage"] for span in one["spans"]]
            assert stages.count(TALKER) == stages.count(VOCODER) == NUM_BLOCKS and stages.count(THINKER) == 16
        spans = sorted((span["start_s"], span["end_s"]) for span in own["sequential"]["spans"])
        assert all(one[1] <= following[0] + 1e-9 for one, following in pairwise(spans)), "one after the other"
    figure = draw_lanes(measured)
    assert len(figure.axes) == 4
    for axes, one in zip(figure.axes, (one for own in measured.values() for one in own.values()), strict=True):
        assert [len(lane.get_paths()) for lane in axes.collections[: len(STAGES)]] == [1, 16, NUM_BLOCKS, NUM_BLOCKS]
        assert axes.lines[0].get_xdata()[0] == 1000 * one["heard_s"]
    table = pipeline_table(measured)
    assert table.count("| sequential |") == table.count("| overlapped |") == 2


def test_a_whole_reply_has_the_tokens_of_its_talker(parts: FirstChunk, cases: list[Case]) -> None:
    case = cases[1]
    expected = tuple(token for chunk in case.stream() for token in chunk.tokens.tolist())
    for pipeline in (Sequential(), Overlapped()):
        assert speak_whole(parts, case, pipeline).tokens == expected


def test_no_round_begins_when_the_time_is_over(
    parts: FirstChunk, cases: list[Case], capsys: pytest.CaptureFixture[str]
) -> None:
    measured = PipelineRounds(time_budget_s=1e-9).measure(parts, cases)
    assert (
        list(measured) == ["ntp, stepwise"] and "no time was left for a whole reply of mdm_4" in capsys.readouterr().out
    )
    assert (
        measured["ntp, stepwise"]["sequential"]["seconds"].low == measured["ntp, stepwise"]["sequential"]["seconds"][0]
    )


def test_settings_that_measure_nothing_are_refused(cases: list[Case]) -> None:
    with pytest.raises(UserError, match="whole replies need first_chunk"):
        PipelineRounds().measure(None, cases)
    with pytest.raises(UserError, match=r"pipelines.num_rounds is 0"):
        PipelineRounds(num_rounds=0)
    with pytest.raises(UserError, match="give at least one, by name"):
        PipelineRounds(pipelines={})
