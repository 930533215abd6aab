"""The benchmark decodes every decoding under every execution in turn, and holds them against each other."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import run
from experiments.engine.runs import read_json, write_json
from experiments.jobs.decoding import benchmark, machine
from experiments.jobs.decoding.benchmark import DecodingBenchmark
from experiments.jobs.decoding.executions import BatchRunner, Runner, Stepwise
from experiments.jobs.decoding.first_chunk import STAGES, FirstChunk
from experiments.jobs.decoding.overlap import PipelineRounds
from experiments.jobs.decoding.talkers import TalkerSizes, draw_talkers
from lightning_modules.errors import UserError
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.streaming import SpeechChunk, TextState
from lightning_modules.talker.decoding.unmasking import Unmasking
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from tests.lightning_modules.thinker.tiny import make_language_model, make_speech_encoder

SMALL = TalkerSizes(16, 24, 2, num_layers=1, num_codes=1000, hidden_size=32, num_extra_layers=2)
DECODINGS = {
    "ntp": Decoding("ntp"),
    "mdm_4": Decoding("mdm", 4),
    "mdm_1": Decoding("mdm", 1, fused_commit=False),
    "left_out": None,
    "adaptive": Decoding("mdm", 4, unmasking=Unmasking(confidence_threshold=1e-9)),
    "vocalnet": Decoding("vocalnet", 15),
}


@dataclass
class Slower:
    """Eager decoding that waits at each block, knows one kind of talker only, and writes down each reply."""

    seconds: float
    begun: list[str] = field(default_factory=list)

    def prepare(self, talker: Talker, decoding: Decoding, num_blocks: int) -> Runner | None:
        if decoding.talker == "vocalnet":
            return None
        eager = Stepwise().prepare(talker, decoding, num_blocks)
        assert eager is not None

        def stream(text: Iterable[TextState], num_blocks: int | None = None) -> Iterator[SpeechChunk]:
            self.begun.append(f"{decoding.talker}_{decoding.num_steps}")
            for chunk in eager(text, num_blocks):
                time.sleep(self.seconds)
                yield chunk

        return stream

    def prepare_batch(self, talker: Talker, decoding: Decoding, num_blocks: int, batch_size: int) -> BatchRunner | None:
        return None


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MEASURED_S", 0.0)
    monkeypatch.setattr(benchmark, "MAIN_MEMORY_BYTES", 2**20)


def measure(folder: Path, **settings: Any) -> dict[str, Any]:
    given = {"sizes": SMALL, "dtype": "float32", "device": "cpu", "num_blocks": 3, "num_rounds": 4, **settings}
    metrics = DecodingBenchmark(**{"decodings": DECODINGS, "executions": {"stepwise": Stepwise()}, **given}).run(folder)
    measured = read_json(folder / "measured.json")
    assert {f"{name}/tokens_per_s" for name in measured["cases"]} == metrics.keys()
    return measured


@pytest.mark.slow
def test_each_decoding_is_timed_under_each_execution_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = Slower(0.02)
    parts = make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), CodecVocoder(SpeechCodec(), 15)
    quality = [{"name": "mdm_4", "wer_micro": 0.25}, {"name": "original audio", "wer_micro": 0.01}]
    write_json(tmp_path / "results.json", quality)
    measured = measure(
        tmp_path, executions={"stepwise": Stepwise(), "slower": slower}, first_chunk=FirstChunk(*parts, query_s=0.5),
        pipelines=PipelineRounds(["mdm_4"], num_rounds=2),
        quality=tmp_path / "results.json",
    )  # fmt: skip
    cases = measured["cases"]
    both = ("ntp", "mdm_4", "mdm_1", "adaptive")
    assert list(cases) == [f"{name}, {how}" for name in both for how in ("stepwise", "slower")] + ["vocalnet, stepwise"]
    assert "vocalnet: not known to the execution slower" in capsys.readouterr().out
    in_order = ["ntp_16", "mdm_4", "mdm_1", "mdm_4"]
    # after a reply to warm up and one that is profiled come the rounds, each second one backwards, and whole replies:
    # of two pipelines one to warm up and two rounds
    assert slower.begun[8:] == 2 * [*in_order, *in_order[::-1]] + 2 * 3 * ["mdm_4"]
    assert all(len(one["rounds_s"]) == measured["about"]["num_rounds"] == 4 for one in cases.values())
    for name, passes, counted in (("ntp", 16, 16), ("mdm_4", 4, 4), ("mdm_1", 5 / 3, 2), ("adaptive", 1, 1)):
        one = cases[f"{name}, stepwise"]
        assert (one["passes_per_block"], one["counted_passes_per_block"]) == (pytest.approx(passes), counted)
    slow, fast = cases["mdm_4, slower"], cases["mdm_4, stepwise"]
    assert slow["tokens_per_s"][0] < 48 / 0.06 and slow["same_tokens_as_reference"] == 1.0
    assert slow["against_reference"][0] < 1.0 and fast["against_reference"] is None
    assert fast["against_baseline"][0] > 0 and cases["ntp, slower"]["against_baseline"] is None
    assert fast["rtf"] == pytest.approx(25 / fast["tokens_per_s"][0])
    assert fast["weight_bytes_per_block"] > 4 * 4 * 16 * 1000, "four times the output head"
    waterfall = measured["first_chunk_ms"]["mdm_4, slower"]
    assert list(sorted(waterfall)) == sorted(STAGES) and waterfall["talker"] >= 20.0
    assert list(measured["whole_replies"]) == ["mdm_4, slower"] and (tmp_path / "whole_replies.png").exists()
    assert measured["word_error_rates"] == {"mdm_4": 0.25, "original audio": 0.01}
    assert {"pareto.png", "speed_over_passes.png", "waterfall.png"} <= {file.name for file in tmp_path.iterdir()}
    table = (tmp_path / "summary.txt").read_text()
    assert "| mdm_1 | slower | 1.667 |" in table and "float32" in table


def test_trained_talkers_within_a_time_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They stand in for drawn ones, in the precision of the benchmark; as many rounds as fit are measured."""
    wide = TalkerSizes(32, 48, 2, num_layers=2, num_codes=50, hidden_size=8)
    given = draw_talkers(wide, {"ntp"}, torch.float64, torch.device("cpu"), 3)
    executions = {"waits": Slower(0.15), "left_out": Stepwise()}
    settings: dict[str, Any] = {"talkers": given, "executions": executions, "only_decodings": ["ntp"], "min_rounds": 2}
    settings |= {"only_executions": ["waits"], "clock": "process", "num_blocks": 3, "frame_rate_hz": 12.5}
    measured = measure(tmp_path, num_rounds=2, **settings)
    assert list(measured["cases"]) == ["ntp, waits"]
    one, about = measured["cases"]["ntp, waits"], measured["about"]
    assert max(one["rounds_s"]) < 0.45, "waiting takes no seconds of the process"
    assert one["num_rounds"] == about["num_rounds"] == about["planned"]["num_rounds"] == 2
    assert one["rtf"] == pytest.approx(12.5 / one["tokens_per_s"][0])
    assert "2 rounds of 3 blocks, about " in capsys.readouterr().out
    assert next(given["ntp"].parameters()).dtype == torch.float32
    assert measured["cases"]["ntp, waits"]["weight_bytes_per_block"] > 16 * 4 * 2 * 4 * 32 * 32
    assert measured["first_chunk_ms"]["ntp, waits"].keys() == {"talker"} and not (tmp_path / "pareto.png").exists()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    def build(**settings: Any) -> DecodingBenchmark:
        return DecodingBenchmark(**{"decodings": DECODINGS, "executions": {"stepwise": Stepwise()}, **settings})

    for settings, message in (
        ({"dtype": "half"}, "dtype is 'half'; choose one of float32, bfloat16"),
        ({"device": "tpu"}, "device is 'tpu'; choose one of auto, cpu, cuda"),
        ({"clock": "sun"}, "clock is 'sun'; choose one of wall, process"),
        ({"clock": "process", "device": "cuda"}, "clock is 'process', which does not count what a GPU computes"),
        ({"executions": {}}, "executions: give at least one"),
        ({"baseline": "nt"}, "baseline is 'nt', which is none of the decodings"),
        ({"num_blocks": 2}, "num_blocks is 2"),
        ({"decodings": {"ntp": Decoding("ntp", 3)}}, "num_steps is 3; this talker decodes a block in one of"),
        ({"decodings": {"ntp": Decoding("nobody")}}, "there is no talker 'nobody' to draw"),
    ):
        with pytest.raises(UserError, match=message):
            build(**settings)
    with pytest.raises(UserError, match="only_decodings: 'mdm_9' is none of the decodings; name some of"):
        build(only_decodings=["ntp", "mdm_9"])
    with pytest.raises(UserError, match=r"max_minutes is 0.0001, .* select rows by only_decodings=.* ntp, stepwise"):
        build(sizes=SMALL, max_minutes=1e-4, device="cpu").run(tmp_path)
    with pytest.raises(UserError, match="frame_rate_hz is 50.0, the vocoder's 25"):
        parts = make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), CodecVocoder(SpeechCodec(), 15)
        build(first_chunk=FirstChunk(*parts), frame_rate_hz=50.0)
    with pytest.raises(FileNotFoundError, match=r"quality: there is no file .*nothing.json; give the results.json"):
        build(quality=tmp_path / "nothing.json").run(tmp_path)
    with pytest.raises(UserError, match="is not the results.json of a comparison"):
        write_json(tmp_path / "other.json", {"rows": []})
        build(quality=tmp_path / "other.json").run(tmp_path)
    often_eos = {"ntp": Decoding("ntp", sampler=TokenSampler(temperature=1.0))}
    with pytest.raises(UserError, match="tokens in place of .*; replies of fixed length need greedy decoding"):
        measure(tmp_path, decodings=often_eos, sizes=TalkerSizes(16, 24, 2, num_codes=2))


@pytest.mark.slow
def test_the_experiment_runs_at_a_small_size(tmp_path: Path) -> None:
    words = [f"runs_dir={tmp_path}", "size=paper", "num_rounds=2", "device=cpu"]
    sizes = "{width: 32, ffn_width: 64, num_heads: 2, num_codes: 40, hidden_size: 32}"
    assert run.main(["benchmark_decoding", *words, f"job.init_args.sizes={sizes}"]) == 0
    (folder,) = tmp_path.glob("benchmark_decoding/benchmark_decoding-*")
    measured = read_json(folder / "measured.json")
    passes = {name.partition(",")[0]: one["counted_passes_per_block"] for name, one in measured["cases"].items()}
    assert {passes[f"mdm_{steps}"] for steps in (1, 2, 4, 8, 16)} == {1, 2, 4, 8, 16}
    assert (passes["mtp_3"], passes["mtp_5"], passes["mdm_4_separate"]) == (6, 4, 5)
    assert measured["about"]["dtype"] == "bfloat16" and measured["machine"]["main_memory"] > 1e8
