"""The corpus job: the released layout, disjoint splits, the same files after any kill and by any number of workers."""

import json
from pathlib import Path

import pytest
import soundfile

from datamodules.batch import SAMPLE_RATE_HZ
from datamodules.formats.released_layout import ReleasedLayout
from datamodules.synthetic import spoken_examples
from datamodules.synthetic.expressive_speech import ExpressiveSpeech
from datamodules.synthetic.lexicon import NAMES, NEW_NAMES
from datamodules.synthetic.spoken_examples import SPLITS, SpokenExamplesMaker

COUNTS = {"num_train": 42, "num_validation": 3, "num_test": 5}


def make(folder: Path, num_workers: int = 0, seed: int = 0) -> dict[str, float]:
    return SpokenExamplesMaker(**COUNTS, seed=seed, num_workers=num_workers).run(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make(folder)
    return folder


def test_files_are_those_of_the_released_layout(corpus: Path) -> None:
    items = json.loads((corpus / "spoken_examples/train.json").read_text())
    assert len(items) == COUNTS["num_train"]
    assert items[0] == {
        "id": "train_00000",
        "speech": "spoken_examples/audios/train_00000.wav",
        "conversations": [
            {"from": "human", "value": "<speech>"},
            {"from": "gpt", "value": items[0]["conversations"][1]["value"]},
        ],
        "units": "spoken_examples/fsq1000_tokens/train_00000.npy",
        "transcript": items[0]["transcript"],
        "reply_speech": "spoken_examples/replies/train_00000.wav",
    }
    info = soundfile.info(corpus / items[0]["speech"])
    assert (info.samplerate, info.channels, info.subtype, info.format) == (SAMPLE_RATE_HZ, 1, "PCM_16", "WAV")


def test_splits_are_disjoint_by_reply_text(corpus: Path) -> None:
    replies = [
        {
            item.reply_text
            for item in ReleasedLayout(corpus / f"spoken_examples/{split}.json", corpus, fields=("query",)).items
        }
        for split in SPLITS
    ]
    assert [len(found) for found in replies] == list(COUNTS.values())
    assert len(set.union(*replies)) == sum(COUNTS.values())


def test_reader_takes_every_field_but_the_tokens(corpus: Path) -> None:
    layout = ReleasedLayout(corpus / "spoken_examples/test.json", corpus, fields=("query", "reply", "transcript"))
    for position in range(len(layout)):
        example = layout[position]
        assert 1.0 < example.reply.numel() / SAMPLE_RATE_HZ < 4.0
        assert example.transcript


def test_workers_write_the_same_files(corpus: Path, tmp_path: Path) -> None:
    make(tmp_path, num_workers=2)
    assert contents(tmp_path) == contents(corpus)


def test_killed_run_resumes_to_the_same_files(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = spoken_examples._write_wav, []

    def fail_at_the_60th(path: Path, waveform) -> None:
        if len(written) == 60:
            path.with_name(f".{path.name}.999.partial").write_bytes(b"half a file, left by a process that was killed")
            raise KeyboardInterrupt
        written.append(path)
        write(path, waveform)

    with monkeypatch.context() as patch:
        patch.setattr(spoken_examples, "_write_wav", fail_at_the_60th)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path)
    assert not (tmp_path / "spoken_examples/train.json").exists()
    kept = written[0].stat().st_mtime_ns
    make(tmp_path)
    assert contents(tmp_path) == contents(corpus)
    assert written[0].stat().st_mtime_ns == kept


def test_finished_run_speaks_nothing_and_replaces_a_damaged_file(corpus: Path, tmp_path: Path) -> None:
    first = make(tmp_path)
    damaged = tmp_path / "spoken_examples/replies/train_00007.wav"
    damaged.write_bytes(b"no audio")
    assert make(tmp_path) == first
    assert contents(tmp_path) == contents(corpus)


def test_files_of_another_plan_are_replaced(corpus: Path, tmp_path: Path) -> None:
    make(tmp_path, seed=1)
    assert contents(tmp_path) != contents(corpus)
    make(tmp_path, seed=0)
    assert contents(tmp_path) == contents(corpus)


def test_metrics_describe_the_lexicon(corpus: Path) -> None:
    metrics = make(corpus)
    assert {name: metrics[name] for name in COUNTS} == COUNTS
    assert metrics["lexicon_words"] > 50
    assert 1 <= metrics["lexicon_min_count"] <= metrics["lexicon_median_count"]
    assert 5 < metrics["reply_words_mean"] < 10


def test_several_may_ask_for_one_dialogue_and_share_its_reply(corpus: Path, tmp_path: Path) -> None:
    made = SpokenExamplesMaker(**COUNTS, seed=0, num_workers=0, askers_per_dialogue=3).run(tmp_path)
    assert made["num_train"] == 3 * COUNTS["num_train"] and made["num_test"] == COUNTS["num_test"]
    items = json.loads((tmp_path / "spoken_examples/train.json").read_text())
    assert [item["id"] for item in items[:4]] == ["train_00000", "train_00000_01", "train_00000_02", "train_00001"]
    assert len({item["units"] for item in items[:3]}) == len({item["reply_speech"] for item in items[:3]}) == 1
    queries = {(tmp_path / item["speech"]).read_bytes() for item in items[:3]}
    assert len(queries) == 3, "each asks in a voice of its own"
    ReleasedLayout(tmp_path / "spoken_examples/train.json", tmp_path, fields=("query", "reply"))


def test_training_queries_may_be_asked_in_voices_of_their_own() -> None:
    def voices_of(**settings) -> dict[str, list]:
        plan = SpokenExamplesMaker(**COUNTS, **settings)._plan()
        return {split: [task.query_voice for task in tasks] for split, tasks in plan.items()}

    usual = voices_of()
    other = voices_of(training_languages=["en-us-nyc"], training_variants=["adam", "ed"])
    assert {one.name for one in other["train"]} == {"en-us-nyc+adam", "en-us-nyc+ed"}
    assert other["validation"] == usual["validation"] and other["test"] == usual["test"]


def plan_of(**settings) -> list[str]:
    tasks = [task for split in SpokenExamplesMaker(**{**COUNTS, **settings})._plan().values() for task in split]
    return [task.dialogue.reply for task in tasks]


def test_names_are_lists_of_the_lexicon_or_names() -> None:
    assert plan_of(names=["old"]) == plan_of()
    for names, wanted in ((["new"], set(NEW_NAMES)), (["Zoltan", "Ming"], {"Zoltan", "Ming"})):
        replies = plan_of(names=names, num_train=80)
        assert all(any(name in reply for name in wanted) for reply in replies)
        assert not any(name in reply.split() for reply in replies for name in NAMES)
    mixed = plan_of(names=["old", "new"], num_train=592)
    shares = [sum(any(name in reply for name in names) for reply in mixed) / len(mixed) for names in (NAMES, NEW_NAMES)]
    assert shares == pytest.approx([1 / 6, 5 / 6], abs=0.01)


def test_part_of_the_training_dialogues_is_that_of_the_whole() -> None:
    whole, part = (SpokenExamplesMaker(**COUNTS, max_train_examples=most)._plan() for most in (None, 2))
    assert part == {**whole, "train": whole["train"][:2]}
    assert len(whole["train"]) > 2


def test_replies_of_other_corpora_are_left_out(corpus: Path, tmp_path: Path) -> None:
    assert set(plan_of()) & set(plan_of(seed=1, num_train=2000))
    assert not set(plan_of()) & set(plan_of(seed=1, num_train=2000, exclude=[str(corpus)]))
    with pytest.raises(FileNotFoundError, match="train.json"):
        plan_of(exclude=[str(tmp_path)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": []}, "an empty list cannot be asked about; give old or new"),
        ({"names": ["old", "nwe"]}, r"\['nwe'\] cannot be asked about"),
        ({"askers_per_dialogue": 0}, "askers_per_dialogue is 0"),
        ({"num_test": 0}, "num_test is 0"),
        ({"max_train_examples": 0}, "max_train_examples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"query_rates_wpm": [200, 140]}, r"query_rates_wpm=\[200, 140\]"),
        ({"query_rates_wpm": [79, 140]}, "from 80 to 450"),
        ({"query_pitches": [30]}, r"query_pitches=\[30\]"),
        ({"query_pitches": [30, 100]}, "from 0 to 99"),
        ({"query_languages": []}, "name at least one of each"),
        ({"query_variants": []}, "name at least one of each"),
        ({"training_variants": []}, "queries of train: .* name at least one of each"),
        ({"codec_name": "a/b"}, "without a slash"),
        ({"expressive": ExpressiveSpeech(tempo_percent=(30, 140))}, "at the lowest and highest tempo_percent"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpokenExamplesMaker(**settings)


def test_expressive_replies_say_the_same_in_another_manner(corpus: Path, tmp_path: Path) -> None:
    def make_expressive() -> dict[str, float]:
        return SpokenExamplesMaker(**COUNTS, num_workers=0, expressive=ExpressiveSpeech()).run(tmp_path)

    make_expressive()
    found, wanted = (
        json.loads((folder / "spoken_examples/test.json").read_text(encoding="utf-8")) for folder in (tmp_path, corpus)
    )
    tempos = [item.pop("reply_tempo") for item in found]
    assert found == wanted, "dialogues, queries and names of files do not depend on how replies are spoken"
    assert len(set(tempos)) > 1 and all(0.7 <= tempo <= 1.4 for tempo in tempos)
    lengths = [soundfile.info(tmp_path / item["reply_speech"]).duration for item in found]
    plain = [soundfile.info(corpus / item["reply_speech"]).duration for item in wanted]
    assert sum(lengths) > sum(plain), "there are pauses"
    before = contents(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    make_expressive()
    assert contents(tmp_path) == before
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}, "nothing is spoken again"
