"""The job that chooses: its errors are those of replies one by one, and what it chose is what is loaded."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from datamodules.spoken_dialogues import SpokenDialogueDataModule
from experiments.engine.artifacts import load_trained, without_weights
from experiments.engine.configuration.builder import build
from experiments.engine.runs import write_config
from experiments.jobs.budgets.choices import read_choice
from experiments.jobs.budgets.chosen import load_chosen, load_talker_weights
from experiments.jobs.budgets.rate_choice import RateChoice
from lightning_modules.errors import UserError
from lightning_modules.evaluation.word_error_rate import count_word_errors
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.vocoder.base import Vocoder, VocoderStream
from tests.experiments.tiny_runs import SPEECH_LLM, spec, talker_spec, trained, write_run
from tests.lightning_modules.test_speech_llm import make_batch

RATES = {"low": 0.001, "high": 0.004}
DECODINGS = {
    "ntp": {"talker": "ntp"},
    "mdm_4": {"talker": "mdm", "num_steps": 4},
    "mdm_1": {"talker": "mdm", "num_steps": 1},
}


class ParityVocoder(Vocoder):
    """Speaks odd tokens as 1 and even ones as -1."""

    sample_rate, samples_per_token = 16_000, 640

    def stream(self) -> VocoderStream:
        return ParityStream()


class ParityStream(VocoderStream):
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        return (2.0 * (tokens % 2) - 1).repeat_interleave(640)


class Judge(SpeechRecognizer):
    """Hears a word for each odd token."""

    def __init__(self) -> None:
        encoder = nn.Identity()
        encoder.output_size = 4  # type: ignore[assignment]
        super().__init__(encoder)

    def transcribe(self, waveforms, lengths=None) -> list[str]:  # type: ignore[no-untyped-def]
        return [" ".join("yes" for part in one.split(640) if part.mean() > 0) for one in waveforms]


@pytest.fixture(scope="module")
def trials(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trials of other rates, each with two kept steps of weights drawn at random."""
    root = tmp_path_factory.mktemp("budgets")
    masking = spec("lightning_modules.talker.masking.schemes.BlockBernoulli", low=0.3, high=1.0)
    talkers = {
        "ntp": talker_spec("autoregressive.AutoregressiveTalker"),
        "mdm": talker_spec("set_block.SetBlockTalker", masking=masking),
    }
    made = []
    for number, (name, rate) in enumerate(RATES.items()):
        for step in (40, 20):
            module = spec(SPEECH_LLM, thinker=trained(runs / "base", "thinker"), talkers=talkers, learning_rate=rate)
            trial = root / f"trial_{name}-1a2b3c4d"
            shutil.rmtree(trial / "checkpoints", ignore_errors=True)
            write_run(trial, module, seed=10 * number + step)
            (trial / "kept").mkdir(exist_ok=True)
            shutil.copy(trial / "checkpoints" / "last.ckpt", trial / "kept" / f"step_{step:06d}.ckpt")
        config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(trial / "config.yaml")))
        write_config(trial / "config.yaml", {**config, "datamodule": spec("a.B", batch_size=4)})
        made.append(trial)
    return made


def make_job(runs: Path, trials: list[Path], **settings: Any) -> RateChoice:
    llm = build(
        spec(
            SPEECH_LLM,
            thinker=trained(trials[0], "thinker"),
            talkers={name: trained(trials[0], f"talkers.{name}") for name in ("ntp", "mdm")},
            draw_weights=False,
            vocoder=spec(f"{__name__}.ParityVocoder"),
            **{"decodings": DECODINGS, "max_text_tokens": 8, "max_speech_s": 1.0, **settings},
        ),
        "module",
    )
    # What a data module gives, without a corpus on the disk.
    batches = [make_batch(seed) for seed in range(2)]
    data = cast(SpokenDialogueDataModule, SimpleNamespace(setup=lambda stage: None, val_dataloader=lambda: batches))
    return RateChoice(llm, data, Judge(), [str(one) for one in trials], max_dialogues=4)


@pytest.fixture(scope="module")
def chosen(runs: Path, trials: list[Path]) -> Path:
    folder = trials[0].parent / "rate_choice-1a2b3c4d"
    folder.mkdir()
    make_job(runs, trials).run(folder)
    return folder


def one_by_one(llm: SpeechLLM, decoding: str) -> list[int]:
    """Count the errors of the first four dialogues, each answered alone."""
    queries = [query for seed in range(2) for query in make_batch(seed).queries()][:4]
    with torch.autocast("cpu", torch.bfloat16):
        replies = [llm.responder.compare(one, llm.decodings, 0, past)[decoding] for one, past in queries]
    pairs = [(one.text, Judge().transcribe([one.waveform])[0]) for one in replies]
    return count_word_errors(pairs)[0].tolist()


def test_the_errors_are_those_of_replies_one_by_one(runs: Path, trials: list[Path], chosen: Path) -> None:
    points = json.loads((chosen / "points.json").read_text())
    assert len(points) == 2 * 2 * 3 and {len(one["errors"]) for one in points} == {4}
    llm = make_job(runs, trials).module
    for trial in trials:
        for name, talker in llm.talkers.items():
            load_talker_weights(talker, trial / "kept" / "step_000020.ckpt", name)
        for one in points:
            if (one["trial"], one["step"]) == (trial.name, 20):
                assert one["errors"] == one_by_one(llm, one["decoding"])
    assert len({tuple(one["errors"]) for one in points}) > 1, "other weights say other things"
    per_reply = json.loads((chosen / "flops_per_reply.json").read_text())
    assert all(one["flops"] == pytest.approx(4 * one["step"] * per_reply[one["talker"]]) for one in points)
    assert {(one["trial"].split("-")[0], one["learning_rate"]) for one in points} == {
        ("trial_low", 0.001),
        ("trial_high", 0.004),
    }


def test_what_was_chosen_is_what_is_loaded(trials: list[Path], chosen: Path) -> None:
    points = json.loads((chosen / "points.json").read_text())
    for name, one in read_choice(chosen)["talkers"].items():
        decoding = {"ntp": "ntp", "mdm": "mdm_4"}[name]
        fewest = min(sum(point["errors"]) for point in points if point["decoding"] == decoding)
        (best,) = (
            point
            for point in points
            if (point["decoding"], point["trial"], point["step"]) == (decoding, one["trial"], one["step"])
        )
        assert sum(best["errors"]) == fewest and one["decoding"] == decoding
        loaded = load_chosen(str(chosen), str(trials[1]), name)
        state = torch.load(chosen.parent / one["weights"], weights_only=True)["state_dict"]
        for key, weight in loaded.state_dict().items():
            assert torch.equal(weight, state[f"talkers.{name}.{key}"])
        assert not loaded.training
    with without_weights({}):
        assert load_chosen("/not/there", str(trials[0]), "ntp").head.weight.shape == loaded.head.weight.shape


def test_people_get_a_table_curves_and_runs_with_equal_tags(chosen: Path) -> None:
    table = (chosen / "results.md").read_text()
    assert table.count("| ntp, ntp |") == table.count("| mdm, mdm_4 |") == 2 and table.count("yes; ") == 2
    for talker in ("ntp, ntp", "mdm, mdm_4"):
        rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith(f"| {talker} |")]
        wer = {row[-1]: float(row[-2].split()[0]) for row in rows}
        (other,) = wer.keys() - {"-"}
        value, low, high = (float(one) for one in re.findall(r"[+-]\d+\.\d", other))
        assert value == pytest.approx(wer[other] - wer["-"], abs=0.11) and 0 <= value and low <= value <= high
    assert (chosen / "curves.png").stat().st_size > 20_000
    tags = {}
    for folder in (chosen / "tensorboard").iterdir():
        events = EventAccumulator(str(folder))
        events.Reload()
        tags[folder.name] = set(events.Tags()["scalars"])
        assert [one.step for one in events.Scalars("val/wer")] == [20, 40]
    shared = {"val/wer", "val/wer_over_gflop"}
    assert tags == {
        **{f"ntp_rate_{rate:g}_steps_40": shared for rate in RATES.values()},
        **{f"mdm_rate_{rate:g}_steps_40": shared | {"val/wer/mdm_1"} for rate in RATES.values()},
    }


def test_a_job_that_was_killed_judges_only_what_is_left(
    runs: Path, trials: list[Path], chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = json.loads((chosen / "points.json").read_text())
    (tmp_path / "points.json").write_text(json.dumps(points[:9]))
    shutil.copy(chosen / "flops_per_reply.json", tmp_path)
    read: list[Path] = []
    monkeypatch.setattr(
        "experiments.jobs.budgets.rate_choice.load_talker_weights",
        lambda talker, file, name: (read.append(file), load_talker_weights(talker, file, name)),
    )
    make_job(runs, trials).run(tmp_path)
    assert set(read) == {trials[1] / "kept" / "step_000040.ckpt"}
    assert json.loads((tmp_path / "points.json").read_text()) == points
    assert (tmp_path / "choice.json").read_text() == (chosen / "choice.json").read_text()


def test_mistakes_are_told(runs: Path, trials: list[Path], chosen: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="decodings: mdm has none, by which it could be judged"):
        make_job(runs, trials, decodings={"ntp": {"talker": "ntp"}})
    with pytest.raises(UserError, match="trials: give the run directory"):
        RateChoice(make_job(runs, trials).module, cast(Any, None), Judge(), [])
    with pytest.raises(FileNotFoundError, match=r"has no choice.json; give the run of a finished stage"):
        load_chosen(str(tmp_path), str(trials[0]), "ntp")
    with pytest.raises(FileNotFoundError, match="there are no kept weights"):
        load_talker_weights(nn.Linear(2, 2), tmp_path / "none.ckpt", "ntp")
    with pytest.raises(UserError, match="does not fit the talker ntp"):
        load_talker_weights(load_trained(trials[0], "talkers.ntp"), runs / "codec" / "checkpoints" / "last.ckpt", "ntp")
    with pytest.raises(UserError, match="chose nothing for 'mtp'; there are ntp, mdm"):
        shutil.copytree(trials[0], tmp_path / "trial")
        config = (tmp_path / "trial" / "config.yaml").read_text().replace("      ntp:", "      mtp:")
        (tmp_path / "trial" / "config.yaml").write_text(config)
        state = torch.load(tmp_path / "trial" / "checkpoints" / "last.ckpt", weights_only=True)
        renamed = {key.replace("talkers.ntp.", "talkers.mtp."): one for key, one in state["state_dict"].items()}
        torch.save({**state, "state_dict": renamed}, tmp_path / "trial" / "checkpoints" / "last.ckpt")
        load_chosen(str(chosen), str(tmp_path / "trial"), "mtp")
