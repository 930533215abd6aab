"""The job that scores text: answers of a small thinker, judged at a local server; killed or not, nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from datamodules.benchmarks.open_audio_bench import OpenAudioBench
from datamodules.benchmarks.query import Benchmark
from datamodules.benchmarks.uro_bench import UroBench
from datamodules.benchmarks.voice_bench import VoiceBench
from experiments import run
from experiments.jobs.judging.endpoint_judge import EndpointJudge
from experiments.jobs.judging.stored_records import StoredRecords
from experiments.jobs.judging.text_judging import TextJudging
from lightning_modules.errors import UserError
from lightning_modules.thinker.thinker import Thinker
from tests.datamodules.benchmarks.small_sets import write_audio, write_open_audio_set, write_uro_set, write_voice_set
from tests.experiments.jobs.judging.endpoint import serve
from tests.experiments.tiny_runs import SPEECH_LLM, spec, thinker_spec, write_run
from tests.lightning_modules.thinker.tiny import make_tokenizer

Folders = dict[str, Path]
ENDPOINT = "experiments.jobs.judging.endpoint_judge.EndpointJudge"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the run of a thinker with random weights."""
    root = tmp_path_factory.mktemp("model")
    make_tokenizer().save_pretrained(root / "tokenizer")
    objective = spec("lightning_modules.thinker.objective.ThinkerObjective")
    module = spec(SPEECH_LLM, thinker=thinker_spec(root / "tokenizer"), thinker_objective=objective)
    return write_run(root / "thinker", module)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Write a small set of each kind."""
    root = tmp_path_factory.mktemp("sets")
    found = {name: root / name for name in ("open_audio_bench", "voice_bench", "uro_bench")}
    rows = [{"Questions": f"Capital {i}?", "Answer": f"City {i}"} for i in range(4)]
    write_open_audio_set(found["open_audio_bench"], "llama_questions", rows, without_audio=[3])
    (found["open_audio_bench"] / "eval_datas/llama_questions/audios/llama_questions_1.mp3").write_bytes(b"noise")
    write_voice_set(found["voice_bench"], "alpacaeval", [{"prompt": f"Sing {i}."} for i in range(3)])
    write_voice_set(found["voice_bench"], "openbookqa", [{"prompt": "Pick.", "reference": "B"}])
    items = [{"source_text": f"Sum up {i}.", "target_text": ["so", "or so"]} for i in range(2)]
    write_uro_set(found["uro_bench"], "Summary", items)
    write_uro_set(found["uro_bench"], "Repeat", [{"source_text": "Say it."}])
    write_audio(found["uro_bench"] / "basic/Repeat/audios/0.wav", seconds=9.0)  # longer than the thinker hears
    return found


def benchmarks(folders: Folders) -> dict[str, Benchmark | None]:
    kinds = {"open_audio_bench": OpenAudioBench, "voice_bench": VoiceBench, "uro_bench": UroBench}
    return {**{name: kind(folders[name]) for name, kind in kinds.items()}, "left_out": None}


def scores(run_dir: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((run_dir / "scores.json").read_text())
    return {one["name"]: one for one in found["sets"]}


def test_every_query_is_answered_scored_or_counted(model: Path, folders: Folders, tmp_path: Path) -> None:
    def grade(number: int, prompt: str) -> str:
        return "I think 3" if "Sing 0." in prompt else "no" if "Right answers:" in prompt else "4"

    with serve(grade) as served:
        judge = EndpointJudge(served.address, "grader")
        job = TextJudging(model, benchmarks(folders), judge, judge_closed=True, max_text_tokens=6)
        metrics = job.run(tmp_path / "run")
    sets = scores(tmp_path / "run")
    assert metrics["num_answered"] == 8 and metrics["num_skipped"] == 3
    assert sets["open_audio_bench/llama_questions"]["skipped"] == {"no audio file": 1, "audio cannot be read": 1}
    assert sets["uro_bench/Repeat"]["skipped"] == {"refused by the thinker": 1}
    questions, choices = sets["open_audio_bench/llama_questions"], sets["voice_bench/openbookqa"]
    assert (questions["num_queries"], questions["matched"]["value"], questions["judged"]["value"]) == (2, 0.0, 0.0)
    assert (choices["num_queries"], choices["num_judged"], choices["num_without_choice"]) == (1, 0, 1)
    songs, sums = sets["voice_bench/alpacaeval"], sets["uro_bench/Summary"]
    assert (songs["num_judged"], songs["num_unreadable"], songs["judged"]["value"]) == (2, 1, 4.0)
    assert (sums["scoring"], sums["judged"]["value"], sums["matched"]) == ("rating with reference", 4.0, None)
    assert any("so / or so" in prompt for prompt in served.prompts)
    settings = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert settings["judge"]["name"] == "grader" and len(settings["thinker"]) == 64
    assert {one["name"]: one["version"] for one in settings["rubrics"]} == {
        "rating": 1,
        "rating with reference": 1,
        "correct": 1,
    }
    assert all("{reply}" in one["template"] for one in settings["rubrics"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "replies.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and {"I think 3", "no", "4"} <= {line["verdict"] for line in lines}
    table = (tmp_path / "run" / "summary.txt").read_text()
    assert "| voice_bench/alpacaeval | rating | 3 | - | 4.00 (4.00 to 4.00) | 2 | 1 |" in table
    assert "1 of uro_bench/Repeat: refused by the thinker" in table


def test_nothing_is_answered_or_judged_twice(
    model: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = Thinker.encode
    monkeypatch.setattr(Thinker, "encode", lambda self, query: encoded.append(len(query)) or encode(self, query))

    def job(address: str, **more: Any) -> TextJudging:
        judge = EndpointJudge(address, "grader", num_parallel=1)
        return TextJudging(model, benchmarks(folders), judge, max_text_tokens=6, **more)

    with serve(lambda number, prompt: "4" if number < 2 else 401) as served, pytest.raises(UserError, match="401"):
        job(served.address).run(tmp_path / "run")
    num_asked = len(encoded)
    with serve(lambda number, prompt: "2") as resumed:
        job(resumed.address).run(tmp_path / "run")
        judged = set(served.prompts[:2]) | set(resumed.prompts)
        assert len(resumed.prompts) == len(set(resumed.prompts)) == len(judged) - 2
        metrics = job(resumed.address, judge_closed=True).run(tmp_path / "other_run")
        closed = [prompt for prompt in resumed.prompts if "Right answers:" in prompt]
        assert len(resumed.prompts) == len(judged) - 2 + len(closed) and len(closed) == 2
    # The query that the thinker refuses is tried each time; all others were answered in the first run.
    assert len(encoded) == num_asked + 2
    assert metrics["num_answered"] == 8


def test_a_dry_run_asks_nobody_and_a_mistake_is_one_line(
    model: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [f"{name}={folder}" for name, folder in folders.items()]
    judge = f"{{class_path: {ENDPOINT}, init_args: {{address: 'http://127.0.0.1:9/v1', model: grader}}}}"
    words = ["judge_text", f"model={model}", *own, f"judge={judge}"]
    assert run.main([*words, "dry_run=true"]) == 0
    said = capsys.readouterr().out
    assert "10 queries to answer, 5 answers to judge (EndpointJudge)" in said
    assert "| voice_bench/alpacaeval | rating | 3 | 3 |" in said and "(the thinker's reply)" in said
    assert "skipped: 1 of open_audio_bench/llama_questions: no audio file" in said
    assert run.main(["judge_text", f"inputs.model={model}"]) == 2
    error = capsys.readouterr().err
    assert "give job.init_args.benchmarks.open_audio_bench.init_args.folder=PATH" in error and error.count("\n") == 1
    assert run.main(["judge_text", f"inputs.model={model}", "job.init_args.judge_closed=true"]) == 2
    assert "there is no judge" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_is_killed_resumes_where_it_was(model: Path, folders: Folders, tmp_path: Path) -> None:
    """Killed by SIGKILL after the second verdict, then run again in a fresh process."""
    own = [f"job.init_args.benchmarks.{name}.init_args.folder={folder}" for name, folder in folders.items()]

    def start(address: str) -> subprocess.Popen[bytes]:
        judge = f"{{address: '{address}', model: grader, num_parallel: 1}}"
        described = f"{{class_path: {ENDPOINT}, init_args: {judge}}}"
        words = [
            "judge_text",
            f"inputs.model={model}",
            *own,
            f"job.init_args.judge={described}",
            f"runs_dir={tmp_path}",
        ]
        return subprocess.Popen([sys.executable, "-m", "experiments.run", *words], stdout=subprocess.DEVNULL)

    def slowly(number: int, prompt: str) -> str:
        time.sleep(0.2)
        return "4"

    with serve(slowly) as served:
        process = start(served.address)
        while len(served.bodies) < 3 and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        before = len(served.bodies)
        answers = (tmp_path / "judge_text/cache/answers.jsonl").read_bytes()
        assert start(served.address).wait(300) == 0
    assert (tmp_path / "judge_text/cache/answers.jsonl").read_bytes() == answers
    assert len(set(served.prompts)) == 5 and len(served.prompts) <= 6 and before < 5  # one may have been under way


def test_a_line_that_a_kill_cut_off_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "records.jsonl"
    records = StoredRecords(file)
    records.add("a", {"reply": "é\n"})
    records.add("b", 1)
    file.write_bytes(file.read_bytes()[:-5])
    again = StoredRecords(file)
    assert "a" in again and "b" not in again and again["a"] == {"reply": "é\n"} and again.num_dropped == 1
    again.add("b", 2)
    assert len(StoredRecords(file)) == 2 and StoredRecords(file)["b"] == 2
    file.write_bytes(b"{}\n" + file.read_bytes())
    with pytest.raises(UserError, match="line 1 is damaged"):
        StoredRecords(file)
