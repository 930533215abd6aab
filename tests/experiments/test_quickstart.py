"""The shipped quickstart, every stage of it, at a tiny size."""

import json
from pathlib import Path

import pytest
import soundfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.config import EXPERIMENTS_DIR
from experiments.pipeline import execute, make_plan

# A tokenizer of so few texts does not know the words of the others: their short tokens are more than the anchors hold.
pytestmark = [pytest.mark.filterwarnings("ignore:The replies"), pytest.mark.filterwarnings("ignore:.*transcripts have")]

FITS = ("codec", "recognizer", "thinker_pretraining", "thinker", "first_talker", "talkers")
KEYS = {
    "talker", "steps", "num_examples", "wer_micro", "wer_macro", "text_exact_match", "tokens_per_s", "rtf",
    "forwards_per_block", "first_chunk_ms", "length_ratio", "failures",
}  # fmt: skip


def tiny_overrides(runs: Path) -> list[str]:
    corpus = {"num_train": 24, "num_validation": 2, "num_test": 2, "num_workers": 0}
    overrides = [f"stages.corpus.job.init_args.{key}={value}" for key, value in corpus.items()]
    for stage in FITS:
        overrides += [f"stages.{stage}.trainer.max_steps=2", f"stages.{stage}.trainer.val_check_interval=2"]
        overrides += [f"stages.{stage}.datamodule.init_args.batch_size=4"]
    return [f"runs_dir={runs}", "stages.tokenizer.job.init_args.min_frequency=1", *overrides]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    execute(make_plan(EXPERIMENTS_DIR / "quickstart.yaml", tiny_overrides(folder)))
    return folder


@pytest.fixture(scope="module")
def talkers_run(runs: Path) -> Path:
    (run,) = (runs / "quickstart").glob("talkers-*")
    return run


def test_the_results_have_a_row_for_each_decoding_and_reference(talkers_run: Path) -> None:
    rows = json.loads((talkers_run / "results.json").read_text())
    decodings = [(row["talker"], row["steps"]) for row in rows]
    assert decodings == [
        ("original audio", None), ("codec resynthesis", None), ("ntp", 16),
        ("mdm", 16), ("mdm", 8), ("mdm", 4), ("mdm", 2), ("mdm", 1),
    ]  # fmt: skip
    for row in rows:
        assert row.keys() >= KEYS
        assert row["num_examples"] == 2
        if row["steps"] is not None:
            parts = row["first_chunk_ms"]
            assert parts.keys() == {"speech_encoder", "thinker", "talker", "vocoder", "total"}
            if row["talker"] == "mdm":
                assert row["forwards_per_block"] == row["steps"], "finished blocks are committed on the way"
    table = (talkers_run / "summary.txt").read_text()
    assert "codec resynthesis" in table and "mdm" in table


def test_replies_can_be_heard_and_seen(talkers_run: Path) -> None:
    wavs = sorted(talkers_run.glob("audio/*/*.wav"))
    assert {wav.stem for wav in wavs} >= {"original-audio", "codec-resynthesis", "ntp-16-steps", "mdm-4-steps"}
    assert all(soundfile.info(wav).samplerate == 16_000 for wav in wavs)
    assert (talkers_run / "pareto.png").stat().st_size > 1000
    tags = {}
    for name in ("ntp", "mdm", "reference"):
        events = EventAccumulator(str(talkers_run / "tensorboard" / name))
        events.Reload()
        tags[name] = events.Tags()
    assert tags["ntp"]["audio"] == tags["mdm"]["audio"] != []
    assert tags["ntp"]["images"] == tags["mdm"]["images"] != []
    assert {"decode/wer_micro", "decode/rtf", "val/nll"} <= set(tags["ntp"]["scalars"])
    assert set(tags["ntp"]["scalars"]) == set(tags["mdm"]["scalars"])
    assert len(tags["reference"]["audio"]) == 4


def test_a_second_run_reuses_every_stage(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(make_plan(EXPERIMENTS_DIR / "quickstart.yaml", tiny_overrides(runs)))
    shown = capsys.readouterr().out
    assert shown.count(": reused") == 10
    assert "codec resynthesis" in shown, "the table is printed again"
