"""Benchmarks read from small sets in their formats: every query, and every item that is skipped."""

from pathlib import Path

import pytest

from datamodules.benchmarks.open_audio_bench import OpenAudioBench, split_answers
from datamodules.benchmarks.query import BenchmarkContents, Scoring
from datamodules.benchmarks.uro_bench import UroBench
from datamodules.benchmarks.voice_bench import VoiceBench
from lightning_modules.errors import UserError
from tests.datamodules.benchmarks.small_sets import RATE_HZ, write_open_audio_set, write_uro_set, write_voice_set


def asked(contents: BenchmarkContents) -> list[tuple]:
    return [(q.set_name, q.number, q.question, q.references, q.scoring) for q in contents.queries]


def test_open_audio_bench(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "answers": "Ada;Ada Lovelace"}, {"question": "", "answers": "x"}]
    rows += [{"question": "What?", "answers": " "}, {"question": "Where?", "answers": "['Rome, Italy', 'Roma']"}]
    write_open_audio_set(
        tmp_path, "web_questions", [*rows, {"question": "When?", "answers": "1815"}], without_audio=[4]
    )
    write_open_audio_set(tmp_path, "alpaca_eval", [{"instruction": "Sing.", "output": "La"}])
    write_open_audio_set(tmp_path, "reasoning_qa", [{"Prompt": "1+1?", "参考答案": "2"}])
    write_open_audio_set(tmp_path, "llama_questions", [{"Questions": "Capital?", "Answer": "Paris; France"}])
    contents = OpenAudioBench(tmp_path).read()
    assert asked(contents) == [
        ("alpaca_eval", 0, "Sing.", (), Scoring.OPEN),
        ("llama_questions", 0, "Capital?", ("Paris; France",), Scoring.ALIAS),
        ("reasoning_qa", 0, "1+1?", ("2",), Scoring.REFERENCE),
        ("web_questions", 0, "Who?", ("Ada", "Ada Lovelace"), Scoring.ALIAS),
        ("web_questions", 3, "Where?", ("Rome, Italy", "Roma"), Scoring.ALIAS),
    ]
    reasons = ("no question", "no reference answer", "no audio file")
    assert contents.skipped == {("web_questions", reason): 1 for reason in reasons}
    assert len(contents.queries[0].audio.read()) == pytest.approx(0.1 * 16_000, rel=0.6)  # mp3 pads to whole frames
    inside = OpenAudioBench(tmp_path / "eval_datas", sets=["web_questions"], max_per_set=1).read()
    assert len(inside.queries) == 1 and inside.skipped["web_questions", "over max_per_set"] == 1


def test_answers_of_a_cell() -> None:
    assert split_answers('["a", "b", "a"]', ";") == ("a", "b")
    assert split_answers("new york, nyc; big apple", r"[;,]") == ("new york", "nyc", "big apple")
    assert split_answers("[sic] yes", ";") == ("[sic] yes",)
    assert split_answers("Washington, D.C.", ";") == ("Washington, D.C.",)


def test_voice_bench(tmp_path: Path) -> None:
    write_voice_set(tmp_path, "alpacaeval", [{"prompt": "Sing."}])
    rows = [{"prompt": f"Q{i}", "reference": f"R{i}"} for i in range(3)]
    write_voice_set(tmp_path, "sd-qa", [*rows, {"prompt": "Q", "reference": None}], split="aus")
    write_voice_set(tmp_path, "openbookqa", [{"prompt": "Pick. A. x B. y", "reference": "B"}])
    write_voice_set(tmp_path, "ifeval", [{"prompt": "Write.", "key": 1}])
    write_voice_set(tmp_path, "new", [{"prompt": "Write."}])
    contents = VoiceBench(tmp_path).read()
    assert asked(contents) == [
        ("alpacaeval", 0, "Sing.", (), Scoring.OPEN),
        ("openbookqa", 0, "Pick. A. x B. y", ("B",), Scoring.CHOICE),
        *(("sd-qa/aus", i, f"Q{i}", (f"R{i}",), Scoring.ALIAS) for i in range(3)),
    ]
    assert contents.skipped == {
        ("ifeval", "needs the rules of IFEval"): 1,
        ("new", "no rule for this set"): 1,
        ("sd-qa/aus", "no reference answer"): 1,
    }
    last = contents.queries[-1].audio  # in the second group of rows
    assert len(last.read()) == round(0.1 * RATE_HZ * 16_000 / 24_000)
    assert last.fingerprint() != contents.queries[-2].audio.fingerprint()


def test_uro_bench(tmp_path: Path) -> None:
    write_uro_set(tmp_path, "AlpacaEval", [{"source_text": "Sing."}])
    write_uro_set(tmp_path, "Summary", [{"source_text": "Sum up.", "target_text": ["one", "two"]}])
    items = [{"source_text": "2+2?", "target_text": 4}, {"source_text": "?", "target_text": "4", "source_wav": None}]
    write_uro_set(tmp_path, "Gsm8kEval", items)
    write_uro_set(tmp_path, "GaokaoEval", [{"source_text": "Pick.", "target_text": "(b)"}])
    write_uro_set(tmp_path, "Repeat", [{"source_text": "Say it."}])
    write_uro_set(tmp_path, "GenEmotion-en", [{"source_text": "Weep."}], track="pro")
    write_uro_set(tmp_path, "MtBenchEval-en", [{"id": 1, "dialogue": []}], track="pro")
    with (tmp_path / "basic" / "Repeat" / "test.jsonl").open("a") as file:
        file.write('{"source_text": \n')
    contents = UroBench(tmp_path).read()
    assert sorted(asked(contents), key=str) == [
        ("AlpacaEval", 0, "Sing.", (), Scoring.OPEN),
        ("GaokaoEval", 0, "Pick.", ("(b)",), Scoring.CHOICE),
        ("Gsm8kEval", 0, "2+2?", ("4",), Scoring.ALIAS),
        ("Repeat", 0, "Say it.", ("Say it.",), Scoring.REPEAT),
        ("Summary", 0, "Sum up.", ("one", "two"), Scoring.REFERENCE),
    ]
    assert contents.skipped == {
        ("Gsm8kEval", "no audio file"): 1,
        ("Repeat", "line is not JSON"): 1,
        ("GenEmotion-en", "no rule for this set"): 1,
        ("MtBenchEval-en", "several rounds"): 1,
    }
    assert len(UroBench(tmp_path / "pro").read().queries) == 0


def test_what_is_not_there_or_not_so_is_refused(tmp_path: Path) -> None:
    assert UroBench().read().queries == []
    with pytest.raises(FileNotFoundError, match="no such folder"):
        UroBench(tmp_path / "none").read()
    for benchmark in (OpenAudioBench, VoiceBench, UroBench):
        with pytest.raises(FileNotFoundError, match=f"no set of {benchmark.__name__}; expected"):
            benchmark(tmp_path).read()
    write_open_audio_set(tmp_path, "web_questions", [{"question": "Who?", "answer": "Ada"}])
    with pytest.raises(UserError, match=r"web_questions\.csv: has the columns .* but no 'answers'"):
        OpenAudioBench(tmp_path).read()
    with pytest.raises(FileNotFoundError, match="has no set 'trivia_qa'; choose among web_questions"):
        OpenAudioBench(tmp_path, sets=["trivia_qa"]).read()
    write_voice_set(tmp_path, "sd-qa", [{"question": "Who?"}], split="usa")
    with pytest.raises(UserError, match=r"usa-00000-of-00001\.parquet: has the columns .* but no 'prompt'"):
        VoiceBench(tmp_path, sets=["sd-qa/usa"]).read()
    (tmp_path / "sd-qa" / "usa-00000-of-00001.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="not a readable Parquet table"):
        VoiceBench(tmp_path, sets=["sd-qa/usa"]).read()
    with pytest.raises(UserError, match="max_per_set is 0"):
        VoiceBench(tmp_path, max_per_set=0)


def test_audio_that_cannot_be_read_says_where_it_is(tmp_path: Path) -> None:
    write_voice_set(tmp_path, "sd-qa", [{"audio": {"bytes": b"noise", "path": None}, "prompt": "Q", "reference": "R"}])
    (query,) = VoiceBench(tmp_path).read().queries
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet, row 0: not readable as audio"):
        query.audio.read()
    table = tmp_path / "sd-qa" / "test-00000-of-00001.parquet"
    content = table.read_bytes()
    table.write_bytes(content[:4] + bytes(40) + content[44:])  # the rows, not the list of columns
    with pytest.raises(UserError, match=r"(?s)test-.*\.parquet, row 0: cannot be read .*fetch the table again"):
        VoiceBench(tmp_path).read().queries[0].audio.read()


def test_damaged_rows_of_a_table_are_told(tmp_path: Path) -> None:
    write_voice_set(tmp_path, "sd-qa", [{"prompt": f"Question {i}", "reference": "R"} for i in range(4)])
    table = tmp_path / "sd-qa" / "test-00000-of-00001.parquet"
    content = table.read_bytes()
    start = content.index(b"Question 2")  # in the second group of rows
    table.write_bytes(content[: start - 30] + bytes(30) + content[start:])
    with pytest.raises(UserError, match=r"(?s)test-.*\.parquet: group 1 of its rows cannot be read .*fetch it again"):
        VoiceBench(tmp_path).read()
