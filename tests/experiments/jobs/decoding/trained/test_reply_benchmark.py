"""Trained talkers speak the texts of a comparison's thinker, under each way to run them in turn."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from datamodules.synthetic.spoken_examples import SpokenExamplesMaker
from experiments import run
from experiments.engine.artifacts import read_config
from experiments.engine.runs import read_json
from experiments.jobs.decoding.executions import Captured, Runner, Static, Stepwise
from experiments.jobs.decoding.replies import Reply
from experiments.jobs.decoding.trained.reply_benchmark import ReplyBenchmark
from experiments.jobs.decoding.trained.spoken_cases import SpokenCase, drop_silent, figures_of_case
from experiments.jobs.speaking.speaking_model import load_speaking_model
from lightning_modules.errors import UserError
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.streaming import SpeechChunk, TextState
from tests.experiments.tiny_runs import spec

STEPS = {"ntp": None, "mdm_4": 4, "mdm_4_voice": 4}
DATAMODULE = "datamodules.spoken_dialogues.SpokenDialogueDataModule"


@pytest.fixture(scope="module")
def comparison(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a comparison with three test queries, and adapters."""
    folder = tmp_path_factory.mktemp("tested") / "comparison-1a2b3c4d"
    SpokenExamplesMaker(num_train=1, num_validation=1, num_test=3, num_workers=0).run(folder.parent / "corpus")
    shutil.copytree(runs / "comparison", folder)
    data = spec(DATAMODULE, root=str(folder.parent / "corpus"), test_fields=["query"], eval_batch_size=2)
    config = {**read_config(folder), "datamodule": data, "trainer": {"precision": "bf16-mixed"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@dataclass(frozen=True)
class Recorded(Static):
    """Static decoding that writes down each reply that it begins."""

    begun: list[str] = field(default_factory=list)

    def prepare(self, talker: Talker, decoding: Decoding, num_blocks: int) -> Runner | None:
        static = super().prepare(talker, decoding, num_blocks)
        assert static is not None

        def speak(text: Iterable[TextState], num_blocks: int | None = None) -> Iterator[SpeechChunk]:
            self.begun.append(decoding.talker)
            return static(text, num_blocks)

        return speak


def test_texts_are_spoken_by_all_cases_in_turn_as_the_system_speaks_them(
    comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = Recorded()
    executions = {"stepwise": Stepwise(), "recorded": recorded, "captured": Captured(), "left_out": None}
    names = ["ntp", "mdm_4", "mdm_4_voice"]
    job = ReplyBenchmark(comparison, executions, names, num_queries=9, precision="32-true", device="cpu")
    metrics = job.run(tmp_path)
    measured = read_json(tmp_path / "results.json")
    cases = measured["cases"]
    assert list(cases) == [f"{name}, {how}" for name in names for how in ("stepwise", "recorded")]
    assert measured["left_out"] == {"captured": names}
    assert "captured is left out for ntp, mdm_4, mdm_4_voice: machine or talker" in capsys.readouterr().out
    # two replies of each warm it up; then come the queries, each second one backwards
    turn = ["ntp", "mdm", "mdm"]
    assert recorded.begun == [*2 * ["ntp"], *4 * ["mdm"], *turn, *turn[::-1], *turn]
    assert measured["about"]["num_queries"] == len(measured["queries"]) == 3 and measured["about"]["dtype"] == "float32"
    assert [one["id"] for one in measured["queries"]] == ["test_00000", "test_00001", "test_00002"]
    responder = load_speaking_model(comparison).responder
    for number, one in enumerate(measured["queries"]):
        audio = comparison.parent / f"corpus/spoken_examples/audios/{one['id']}.wav"
        query = torch.from_numpy(soundfile.read(audio, dtype="float32")[0])
        for name, adapter in (("ntp", None), ("mdm_4", None), ("mdm_4_voice", "voice")):
            answer = responder.answer(
                responder.write_text(query, adapter), Decoding(name[:3], STEPS[name], adapter=adapter)
            )
            assert one["text"] == answer.text or adapter is not None
            assert cases[f"{name}, stepwise"]["num_tokens"][number] == len(answer.speech_tokens)
    for one in cases.values():
        assert one["num_equal_tokens"] == one["num_compared_tokens"] == sum(one["num_tokens"]) > 0
        rates = np.array(one["num_tokens"]) / one["seconds"]
        assert metrics[f"{one['decoding']}, {one['execution']}/tokens_per_s"] == pytest.approx(np.median(rates))
        assert one["tokens_per_s"][1:] == pytest.approx(np.percentile(rates, [10, 90]))
        for what, other in (("reference", f"{one['decoding']}, stepwise"), ("baseline", f"ntp, {one['execution']}")):
            if cases[other] is one:
                assert one[f"against_{what}"] is None
            else:
                its = np.array(cases[other]["num_tokens"]) / cases[other]["seconds"]
                assert one[f"against_{what}"][0] == pytest.approx(np.median(rates / its))
    assert cases["mdm_4, stepwise"]["passes_per_block"] == 4
    table = (tmp_path / "summary.txt").read_text()
    assert table == (tmp_path / "results.md").read_text()
    assert "| mdm_4_voice | recorded | 4 |" in table and "captured is left out for ntp" in table
    assert "against ntp, same execution | tokens as stepwise" in table


def test_the_experiment_speaks_in_the_precision_of_the_comparison(comparison: Path, tmp_path: Path) -> None:
    """Packed layers are not for talkers with adapters, graphs of CUDA not for a CPU."""
    words = [f"inputs.run={comparison}", f"runs_dir={tmp_path}", "num_queries=1", "device=cpu", "clock=process"]
    words += ["only_executions=[stepwise,packed,captured_fused]", "only_decodings=[ntp]"]
    assert run.main(["benchmark_replies", *words]) == 0
    (folder,) = tmp_path.glob("benchmark_replies/benchmark_replies-*")
    measured = read_json(folder / "results.json")
    assert list(measured["cases"]) == ["ntp, stepwise"]
    assert list(measured["left_out"]) == ["packed", "captured_fused"]
    assert measured["about"]["dtype"] == "bfloat16 by autocast" and measured["about"]["clock"] == "process"


def test_what_cannot_be_measured_is_refused(runs: Path, comparison: Path, tmp_path: Path) -> None:
    executions: dict[str, Any] = {"stepwise": Stepwise(), "captured": Captured()}
    with pytest.raises(UserError, match=r"run: .*base is no comparison, it has no decodings and no datamodule; give"):
        ReplyBenchmark(runs / "base", executions).run(tmp_path)
    with pytest.raises(
        UserError, match=r"'mdm_9' is none of the decodings; name some of \['ntp', 'mdm_4', 'ntp_voice'"
    ):
        ReplyBenchmark(comparison, executions, ["mdm_9"]).run(tmp_path)
    with pytest.raises(UserError, match="'eager' is none of the executions; name some of"):
        ReplyBenchmark(comparison, executions, only_executions=["eager"])
    for settings, message in (
        ({"num_queries": 0}, "num_queries is 0"),
        ({"clock": "sun"}, "clock is 'sun'; choose one of wall, process"),
        ({"clock": "process", "device": "cuda"}, "clock is 'process', which does not count what a GPU computes"),
        ({"executions": {"stepwise": None}}, "executions: give at least one"),
    ):
        with pytest.raises(UserError, match=message):
            ReplyBenchmark(**{"run": comparison, "executions": executions, **settings})
    with pytest.raises(UserError, match="only_executions: none of them can run here; add stepwise"):
        ReplyBenchmark(comparison, {"captured": Captured()}, ["ntp"], num_queries=1, device="cpu").run(tmp_path)


def reply(seconds: float, *tokens: int) -> Reply:
    return Reply(seconds, 0.0, 3, 2, tokens)


def case(execution: str, *replies: Reply) -> SpokenCase:
    return SpokenCase("ntp", execution, lambda text: iter(()), replies=list(replies))


def test_figures_against_some_made_by_hand() -> None:
    one = case("stepwise", reply(1.0, 1, 2, 3, 4), reply(2.0, 5, 6))
    two = case("static", reply(0.5, 1, 2, 3, 4, 9), reply(0.5, 7, 6))
    cases = {("ntp", "stepwise"): one, ("ntp", "static"): two}
    figures = figures_of_case(two, cases, "stepwise", "mdm")
    assert (figures["num_equal_tokens"], figures["num_compared_tokens"]) == (5, 7), "one is other, one too many"
    assert figures["against_reference"] == (3.25, 2.5, 4.0) and figures["against_baseline"] is None
    assert figures["passes_per_block"] == 1.5 and figures["tokens_per_s"][0] == 7.0
    alone = figures_of_case(two, {("ntp", "static"): two}, "stepwise", "mdm")
    assert alone["num_equal_tokens"] is None and alone["against_reference"] is None


def test_a_query_that_one_case_is_silent_to_counts_for_none() -> None:
    one, two = case("stepwise", reply(1.0, 1), reply(1.0, 2)), case("static", reply(1.0), reply(1.0, 3))
    assert drop_silent([one, two]) == 1
    assert [[each.tokens for each in case.replies] for case in (one, two)] == [[(2,)], [(3,)]]
    with pytest.raises(UserError, match="ends each reply before it has said a token"):
        drop_silent([one, case("static", reply(1.0))])
