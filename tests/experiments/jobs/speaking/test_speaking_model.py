"""A speaking model is found and loaded from runs, exports and folders of runs, with what writes down its queries."""

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.engine.runs import Run, write_config
from experiments.jobs.exporter import Exporter
from experiments.jobs.speaking.speaking_model import find_source, load_speaking_model
from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.decoding import Decoding
from tests.experiments.jobs.test_exporter import QUERY, answers, assert_same
from tests.experiments.tiny_runs import SPEECH_LLM, spec, trained, write_run


def described(run: Path, **keys: Any) -> Path:
    """Write a run that was only tested."""
    one = Run(run, "5e6f7a8b")
    write_config(one.config_file, {"fit": False, "fingerprint": one.fingerprint, **keys})
    return run


def test_a_comparison_its_export_and_the_folder_of_its_runs_speak_alike(runs: Path, tmp_path: Path) -> None:
    Exporter(runs / "comparison").run(tmp_path)
    (runs / "latest.txt").write_text("base: base\ncomparison: comparison\n", encoding="utf-8")
    run, folder, export = (load_speaking_model(path) for path in (runs / "comparison", runs, tmp_path))
    assert folder.source == run.source == runs / "comparison" and export.source == tmp_path / "export"
    assert run.decodings["mdm_4"] == Decoding("mdm", 4) and set(export.decodings) == {"ntp", "mdm_4"}
    expected = answers(run.llm)
    for name, found in answers(export.llm).items():
        assert_same(found, expected[name])
    assert run.sample_rate_hz == 16_000 and not any(one.requires_grad for one in run.llm.parameters())
    assert run.transcribe is None and run.transcribed_by == "", "nothing here learned to transcribe"


def test_a_training_speaks_with_the_vocoder_of_another_run(runs: Path) -> None:
    model = load_speaking_model(runs / "base", vocoder_run=runs / "comparison")
    assert set(model.decodings) == {"ntp", "mdm"}
    reply = model.responder.answer(model.responder.write_text(QUERY), model.decodings["mdm"])
    assert len(reply.waveform) > 0


def test_queries_are_written_down_by_the_thinker_or_else_by_the_judge(runs: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "thinker": trained(runs / "base", "thinker"),
        "talkers": {"ntp": trained(runs / "base", "talkers.ntp")},
        "draw_weights": False,
        "vocoder": spec("lightning_modules.vocoder.codec_vocoder.CodecVocoder", codec=trained(runs / "codec")),
    }
    objective = spec("lightning_modules.thinker.objective.ThinkerObjective", transcript=0.3)
    learned = write_run(tmp_path / "learned", spec(SPEECH_LLM, **{**arguments, "thinker_objective": objective}))
    hearing = {**arguments, "thinker": trained(learned, "thinker")}
    by_thinker = load_speaking_model(described(tmp_path / "by_thinker", module=spec(SPEECH_LLM, **hearing)))
    assert by_thinker.transcribed_by == "thinker" and by_thinker.transcribe is not None
    expected = by_thinker.llm.thinker.transcribe(QUERY[None], torch.tensor([len(QUERY)]))
    assert [by_thinker.transcribe(QUERY)] == expected
    encoder = spec("lightning_modules.acoustics.conv_speech_encoder.ConvSpeechEncoder", channels=8)
    judge = spec("lightning_modules.speech_recognizer.SpeechRecognizer", encoder=encoder)
    recognizer = write_run(tmp_path / "recognizer", judge)
    callbacks = {"comparison": spec("callbacks.comparison.comparison.Comparison", recognizer=trained(recognizer))}
    judged = described(tmp_path / "judged", module=spec(SPEECH_LLM, **arguments), callbacks=callbacks)
    model = load_speaking_model(judged)
    assert model.transcribed_by == "recognizer" and model.transcribe is not None
    assert isinstance(model.transcribe(QUERY), str)


def test_what_cannot_speak_is_told(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no vocoder; give a comparison, or job.init_args.vocoder_run=RUN"):
        load_speaking_model(runs / "base")
    with pytest.raises(UserError, match="holds a SpeechCodec; give the run of a SpeechLLM"):
        load_speaking_model(runs / "codec")
    with pytest.raises(FileNotFoundError, match="is no run directory, no export and no folder of runs; .* quickstart"):
        find_source(tmp_path)
    (tmp_path / "latest.txt").write_text("codec: codec-1\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"has no finished comparison; give one of its runs: \['codec-1'\]"):
        find_source(tmp_path)
