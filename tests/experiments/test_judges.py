"""The experiment that makes corpora and judges for new names and a new voice, with very little of everything."""

import json
from pathlib import Path

import pytest

from datamodules.batch import SAMPLE_RATE_HZ
from datamodules.formats.released_layout import ReleasedLayout
from datamodules.synthetic.lexicon import NAMES, NEW_NAMES
from experiments.engine.artifacts import load_trained
from experiments.run import main

CORPORA = (
    *("corpus", "new_names_corpus", "old_names_test", "new_names_test", "judging_old_voice"),
    *("new_voice_corpus", "new_voice_test", "judging_new_voice"),
)
TESTS = ("old_names_test", "new_names_test")
FITS = ("codec", "adapted_codec", "recognizer_of_voices", "voice_classifier")


def replies(run: Path) -> dict[str, str]:
    splits = (
        ReleasedLayout(run / f"spoken_examples/{name}.json", run, fields=()) for name in ("train", "validation", "test")
    )
    return {item.id: item.reply_text for split in splits for item in split.items}


@pytest.mark.slow
def test_corpora_are_disjoint_and_judges_and_codec_can_be_loaded(tmp_path: Path) -> None:
    counts = {"num_train": 24, "num_validation": 2, "num_test": 2, "num_workers": 0}
    overrides = [f"stages.{stage}.job.init_args.{key}={value}" for stage in CORPORA for key, value in counts.items()]
    for stage in FITS:
        overrides += [f"stages.{stage}.trainer.max_steps=2", f"stages.{stage}.trainer.val_check_interval=2"]
    assert main(["judges", *overrides, f"runs_dir={tmp_path}"]) == 0
    run_of = {run.name.rsplit("-", 1)[0]: run for run in (tmp_path / "quickstart").iterdir() if run.is_dir()}

    said = {name: replies(run_of[name]) for name in CORPORA}
    assert said["judging_old_voice"] == said["judging_new_voice"], "a voice cannot be told by what it says"
    assert said["new_names_corpus"] == said["new_voice_corpus"] and said["new_names_test"] == said["new_voice_test"]
    for test in TESTS:
        for other in {*CORPORA} - {test, "new_voice_test"}:
            assert not set(said[test].values()) & set(said[other].values()), (test, other)
    assert not set(said["new_names_corpus"].values()) & set(said["corpus"].values())
    assert all(any(name in reply for name in NEW_NAMES) for reply in said["new_names_test"].values())
    assert all(any(name in reply for name in NAMES) for reply in said["old_names_test"].values())

    example = ReleasedLayout(
        run_of["judging_new_voice"] / "spoken_examples/train.json", run_of["judging_new_voice"], fields=("reply",)
    )[0]
    adapted, codec = load_trained(run_of["adapted_codec"]), load_trained(run_of["codec"])
    assert example.reply.numel() > SAMPLE_RATE_HZ
    assert adapted.encode(example.reply[None])[0].equal(codec.encode(example.reply[None])[0])
    assert load_trained(run_of["voice_classifier"]).classify([example.reply])[0] in ("old", "new")
    metrics = json.loads((run_of["voice_classifier"] / "finished.json").read_text())["metrics"]
    assert {"val/accuracy", "val/accuracy_old", "val/accuracy_new"} <= set(metrics)

    floor = json.loads((run_of["resynthesis_floor"] / "finished.json").read_text())["metrics"]
    assert {
        f"{voice}/{name}/wer" for voice in ("old", "new") for name in ("original", "codec", "adapted_codec")
    } <= set(floor)
    assert (run_of["resynthesis_floor"] / "results.md").is_file()
