"""A thinker hears the same queries under several conditions."""

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from audiomentations import Gain

from datamodules.query_transforms import LeadingSilence
from datamodules.synthetic.espeak import Voice
from datamodules.synthetic.spoken_examples import SpokenExamplesMaker
from experiments.engine.artifacts import load_trained
from experiments.jobs.speaking import hearing
from experiments.jobs.speaking.hearing import AS_RECORDED, HearingCondition, HearingTrial
from lightning_modules.errors import UserError
from lightning_modules.evaluation.word_error_rate import word_error_rates

SILENCE = HearingCondition(transforms=[LeadingSilence(0.5, 0.5, p=1.0)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    SpokenExamplesMaker(num_train=1, num_validation=2, num_test=5, num_workers=0).run(root)
    return root


def trial(runs: Path, corpus: Path, **more: Any) -> HearingTrial:
    return HearingTrial(runs / "base", corpus, **{"conditions": {"late": SILENCE}, **more})


def test_conditions_change_what_is_heard_and_the_plain_one_is_the_corpus(
    runs: Path, corpus: Path, tmp_path: Path
) -> None:
    voices = HearingCondition([Voice(variant="Alex")], [Gain(min_gain_db=-20.0, max_gain_db=-20.0, p=1.0)])
    figures = trial(runs, corpus, conditions={"late": SILENCE, "other voice": voices}, batch_size=2).run(tmp_path)
    wavs = {file.stem: soundfile.read(file, dtype="float32")[0] for file in (tmp_path / "audio").iterdir()}
    recorded, _ = soundfile.read(corpus / "spoken_examples/audios/test_00000.wav", dtype="float32")
    assert abs(wavs["as_recorded"] - recorded).max() < 1e-4
    assert len(wavs["late"]) == len(recorded) + 8_000 and abs(wavs["late"][:8_000]).max() == 0
    assert 0 < abs(wavs["other_voice"]).max() < 0.2 * abs(recorded).max()
    thinker = load_trained(runs / "base", "thinker")
    items = json.loads((corpus / "spoken_examples" / "test.json").read_text())
    heard = []
    for item in items:
        query = torch.from_numpy(soundfile.read(corpus / item["speech"], dtype="float32")[0])
        heard += thinker.transcribe(query[None], torch.tensor([len(query)]))
    expected = word_error_rates([item["transcript"] for item in items], heard).micro
    assert figures[f"{AS_RECORDED}/wer"] == pytest.approx(expected, abs=0.02)  # batches are padded
    assert figures[f"{AS_RECORDED}/lost"] == 0 and figures["late/exact"] == 0
    summary = (tmp_path / "summary.txt").read_text()
    assert "5 queries (test)" in summary and "No human speech" in summary and "| other voice |" in summary


def test_points_lost_are_paired_with_the_plain_queries(
    runs: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misses = iter([[0.0, 0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0, 1.0]])

    def hear(*_: Any) -> tuple[Any, Any, Any]:
        empty = torch.zeros(0).double().numpy()
        return torch.tensor(next(misses)).double().numpy(), empty, empty

    monkeypatch.setattr(hearing.HearingTrial, "_hear", hear)
    figures = trial(runs, corpus, transcribe=False).run(tmp_path)
    assert figures == pytest.approx(
        {f"{AS_RECORDED}/exact": 0.6, f"{AS_RECORDED}/lost": 0.0, "late/exact": 0.4, "late/lost": 0.2}
    )
    assert "| late | 40.0 (" in (tmp_path / "results.md").read_text()


def test_splits_add_up_and_limits_hold(runs: Path, corpus: Path, tmp_path: Path) -> None:
    trial(runs, corpus, splits=["test", "validation"], max_examples=2, transcribe=False).run(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "4 queries (test, validation)" in text and text.count("| - |\n") == 2


def test_a_condition_that_changes_nothing_is_refused(runs: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match="conditions.same changes nothing; give it voices or transforms"):
        trial(runs, corpus, conditions={"same": HearingCondition(), "gone": None})
    with pytest.raises(UserError, match="batch_size is 0"):
        trial(runs, corpus, batch_size=0)
