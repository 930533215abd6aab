"""Exports: read by transformers and peft alone, and read back by us to the same tokens, merged or not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from experiments.engine.artifacts import load_trained, read_config
from experiments.engine.exports import from_export, self_contained_spec
from experiments.engine.runs import Run, write_config
from experiments.jobs.exporter import Exporter
from lightning_modules.adapters.lora import lora_layers
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.vocalnet.vocalnet_talker import VocalNetTalker
from lightning_modules.thinker.language_model import LanguageModel
from tests.experiments.tiny_runs import SPEECH_LLM, spec, talker_spec, thinker_spec, trained, write_run
from tests.lightning_modules.codec.tiny import make_model
from tests.lightning_modules.talker.vocalnet.tiny import END_OF_TEXT_ID, write_checkpoint

QUERY = 0.1 * torch.randn(8_000, generator=torch.Generator().manual_seed(3))


def answers(llm: SpeechLLM) -> dict[str, tuple[str, list[int], Tensor]]:
    replies = llm.responder.compare(QUERY, llm.decodings)
    return {name: (one.text, one.speech_tokens.tolist(), one.waveform) for name, one in replies.items()}


def assert_same(found: tuple[str, list[int], Tensor], expected: tuple[str, list[int], Tensor]) -> None:
    assert found[:2] == expected[:2] and len(found[1]) > 0
    torch.testing.assert_close(found[2], expected[2], atol=1e-5, rtol=1e-4)


def logits_elsewhere(export: Path, out: Path, adapter: str = "") -> Tensor:
    """Let a fresh process that knows transformers and peft alone compute text logits."""
    code = f"""
import torch, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.whisper.modeling_whisper import WhisperEncoder
model = AutoModelForCausalLM.from_pretrained("thinker/language_model")
assert len(AutoTokenizer.from_pretrained("thinker/language_model")) > 200
WhisperEncoder.from_pretrained("thinker/speech_encoder")
if {adapter!r}:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, {adapter!r})
torch.save(model.eval()(torch.arange(9)[None]).logits, {str(out)!r})
assert not any(name.split(".")[0] in ("lightning_modules", "experiments") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=export, check=True, timeout=120, capture_output=True)
    return torch.load(out, weights_only=True)


def logits_here(model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return model.logits(model(model.embed(torch.arange(9)[None])))


def test_a_merged_export_speaks_and_other_programs_read_it(runs: Path, tmp_path: Path) -> None:
    metrics = Exporter(runs / "comparison", adapter="voice").run(tmp_path)
    differences = {name: value for name, value in metrics.items() if name.startswith("merge_difference/")}
    assert differences.keys() == {
        f"merge_difference/{name}" for name in ("prompt embeddings", "text logits", "logits of ntp", "logits of mdm")
    }
    assert 0 < differences["merge_difference/logits of ntp"] < 1e-4 and metrics["num_talkers"] == 2
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "export", moved)  # nothing in it says where it lies
    llm, original = from_export(moved), load_trained(runs / "comparison")
    assert not list(lora_layers(llm)) and set(llm.decodings) == {"ntp_voice", "mdm_4_voice"}
    expected = answers(original)
    assert expected["ntp"][:2] != expected["ntp_voice"][:2]
    for name, found in answers(llm).items():
        assert_same(found, expected[name])
    torch.testing.assert_close(logits_elsewhere(moved, tmp_path / "logits.pt"), logits_here(llm.thinker.language_model))
    original.adapters.select("voice")
    here = logits_here(original.thinker.language_model)
    torch.testing.assert_close(logits_here(llm.thinker.language_model), here, atol=1e-4, rtol=1e-4)
    card = (moved / "README.md").read_text()
    assert "WER 1.23 %" in card and "ntp (" in card and "mdm (" in card and "voice, merged" in card
    assert str(runs) not in (moved / "config.json").read_text()


@pytest.mark.slow
def test_an_unmerged_export_keeps_base_and_adapter_apart(runs: Path, tmp_path: Path) -> None:
    Exporter(runs / "comparison", adapter="voice", merge=False).run(tmp_path)
    export = tmp_path / "export"
    expected = answers(load_trained(runs / "comparison"))
    llm = from_export(export)
    for name, found in answers(llm).items():
        assert_same(found, expected[name])
    assert set(llm.decodings) == set(expected)
    adapter = "adapters/voice/thinker.language_model"
    for name, folder in ((None, ""), ("voice", adapter)):
        llm.adapters.select(name)
        elsewhere = logits_elsewhere(export, tmp_path / "logits.pt", folder)
        torch.testing.assert_close(elsewhere, logits_here(llm.thinker.language_model))
    weights = load_file(export / "talkers" / "ntp.safetensors")
    assert weights and not any("lora" in key or "base_layer" in key for key in weights)


def test_a_training_run_is_exported_with_what_it_trained_and_the_vocoder_of_another(runs: Path, tmp_path: Path) -> None:
    metrics = Exporter(runs / "lora", vocoder_run=runs / "comparison").run(tmp_path)
    assert metrics["merge_difference/text logits"] > 0
    llm, original = from_export(tmp_path / "export"), load_trained(runs / "lora")
    original.adapters.select("trained")
    here = logits_here(original.thinker.language_model)
    torch.testing.assert_close(logits_here(llm.thinker.language_model), here, atol=1e-4, rtol=1e-4)
    assert llm.vocoder is not None and set(llm.talkers) == {"ntp", "mdm"}


def test_a_run_with_a_vocoder_keeps_it(runs: Path, tmp_path: Path) -> None:
    other = Run(tmp_path / "other", "5e6f7a8b")
    module = spec(SPEECH_LLM, vocoder=spec("lightning_modules.vocoder.windowed.WindowedCodecVocoder"))
    write_config(other.config_file, {"module": module, "fit": False, "fingerprint": other.fingerprint})
    Exporter(runs / "comparison", vocoder_run=other.directory).run(tmp_path)
    found, expected = from_export(tmp_path / "export").vocoder, load_trained(runs / "comparison", "vocoder")
    assert type(found) is type(expected)
    weights = expected.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in found.state_dict().items())
    assert not any("text_reading" in key for key in weights), "what trained the codec is no part of what speaks"
    described = (tmp_path / "export" / "config.json").read_text()
    assert "SpeechCodec" in described and "text_reading" not in described and "shift_tolerance" not in described


def test_a_difference_above_the_tolerance_is_told(runs: Path, tmp_path: Path) -> None:
    Exporter(runs / "comparison", adapter="voice", tolerance=1e-12).run(tmp_path)
    told = (tmp_path / "summary.txt").read_text()
    assert "warning: merged and unmerged text logits differ by" in told and "more than 1e-12" in told
    assert "more than allowed" in (tmp_path / "export" / "README.md").read_text()
    Exporter(runs / "comparison", adapter="voice").run(tmp_path)
    assert "warning" not in (tmp_path / "summary.txt").read_text()


def test_without_an_adapter_the_base_is_exported(runs: Path, tmp_path: Path) -> None:
    metrics = Exporter(runs / "comparison").run(tmp_path)
    assert not any("difference" in name for name in metrics)
    expected = answers(load_trained(runs / "comparison"))
    found = answers(from_export(tmp_path / "export"))
    assert set(found) == {"ntp", "mdm_4"}
    for name, one in found.items():
        assert_same(one, expected[name])


def test_what_cannot_be_exported_is_told(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no vocoder; give a comparison, or job.init_args.vocoder_run"):
        Exporter(runs / "lora").run(tmp_path)
    with pytest.raises(UserError, match="holds a SpeechCodec; give the run of a SpeechLLM"):
        Exporter(runs / "codec").run(tmp_path)
    with pytest.raises(UserError, match=r"there is no adapter 'x'; there are \['voice'\]"):
        Exporter(runs / "comparison", adapter="x").run(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        Exporter(tmp_path / "nowhere").run(tmp_path)
    with pytest.raises(UserError, match="tolerance"):
        Exporter(runs / "comparison", tolerance=0.0)
    objective = spec("lightning_modules.thinker.objective.ThinkerObjective")
    alone = spec(SPEECH_LLM, thinker=thinker_spec(runs / "tokenizer"), thinker_objective=objective)
    with pytest.raises(UserError, match="has no talker; give a run that holds thinker and talkers"):
        Exporter(write_run(tmp_path / "alone", alone)).run(tmp_path)


def test_a_thinker_whose_hearing_trained_on_is_exported_whole(runs: Path, tmp_path: Path) -> None:
    hearing = spec(
        "lightning_modules.thinker.hearing_alone.train_hearing_alone", thinker=trained(runs / "base", "thinker")
    )
    objective = spec("lightning_modules.thinker.objective.ThinkerObjective")
    learned = write_run(tmp_path / "hearing", spec(SPEECH_LLM, thinker=hearing, thinker_objective=objective), seed=4)
    file = Run(learned, "1a2b3c4d").checkpoint_file
    checkpoint = torch.load(file, weights_only=True)
    assert "thinker.language_model" in str(checkpoint["left_out"])
    checkpoint["state_dict"]["thinker.adaptor.down.bias"] += 0.1  # as if it had trained
    torch.save(checkpoint, file)
    module = json.loads(json.dumps(read_config(runs / "comparison")["module"]))
    module["init_args"]["thinker"] = trained(learned, "thinker")
    Exporter(write_run(tmp_path / "comparison", module, fits=False)).run(tmp_path)
    expected = load_trained(learned, "thinker")
    shutil.rmtree(learned)
    found, base = from_export(tmp_path / "export").thinker, load_trained(runs / "base", "thinker")
    embeddings = found.encode(QUERY).embeddings
    torch.testing.assert_close(embeddings, expected.encode(QUERY).embeddings, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(embeddings, base.encode(QUERY).embeddings, atol=1e-2)
    assert torch.equal(logits_here(found.language_model), logits_here(base.language_model))


def with_words(thinker: dict, words: list[str]) -> dict:
    return spec("lightning_modules.thinker.dialogue.new_words.with_new_words", thinker=thinker, words=words)


@pytest.mark.parametrize("merge", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_words_that_an_adapter_learned_are_exported_with_their_tokens(runs: Path, tmp_path: Path, merge: bool) -> None:
    words, text = ["Ada", "O'Neil"], "Ada, tell O'Neil."
    thinker = with_words(trained(runs / "base", "thinker"), words)
    language_model = {"rank": 2, "targets": "all-linear", "modules_to_save": ["embed_tokens"]}
    objective = spec("lightning_modules.thinker.objective.ThinkerObjective")
    module = spec(
        SPEECH_LLM, thinker=thinker, thinker_objective=objective, lora={"thinker.language_model": language_model}
    )
    learned = write_run(tmp_path / "learned", module, seed=5)
    load_trained(learned).save_adapter(learned / "adapters" / "last")
    compared = json.loads(json.dumps(read_config(runs / "comparison")["module"]))
    compared["init_args"]["thinker"] = thinker
    compared["init_args"]["adapters"]["voice"]["folder"] = str(learned / "adapters" / "last")
    comparison = write_run(tmp_path / "comparison", compared, fits=False)
    Exporter(comparison, adapter="voice", merge=merge).run(tmp_path)
    llm, original = from_export(tmp_path / "export"), load_trained(comparison)
    expected = answers(original)
    for name, found in answers(llm).items():
        assert_same(found, expected[name])
    states = []
    for one in (llm, original):
        one.adapters.select("voice" if one.adapters.names else None)
        assert one.thinker.prompt.encode_replies([text]) == original.thinker.prompt.encode_replies([text])
        states.append(one.thinker.states(QUERY[None], torch.tensor([len(QUERY)]), [text]))
    for part in ("hidden", "embedding"):
        here, there = (getattr(one, part) for one in states)
        torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    alone = AutoTokenizer.from_pretrained(tmp_path / "export" / "thinker" / "language_model")
    ids = alone(text, add_special_tokens=False)["input_ids"]
    assert set(alone.convert_tokens_to_ids(words)) <= set(ids) and alone.decode(ids) == text


def test_a_damaged_export_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no export, it has no config.json"):
        from_export(tmp_path)
    Exporter(runs / "comparison").run(tmp_path)
    export = tmp_path / "export"
    config = json.loads((export / "config.json").read_text())
    (export / "talkers" / "ntp.safetensors").rename(tmp_path / "aside")
    with pytest.raises(FileNotFoundError, match="ntp.safetensors is missing; copy the whole export"):
        from_export(export)
    shutil.copy(export / "talkers" / "mdm.safetensors", export / "talkers" / "ntp.safetensors")
    (export / "thinker" / "adaptor.safetensors").replace(export / "talkers" / "ntp.safetensors")
    shutil.copy(tmp_path / "aside", export / "thinker" / "adaptor.safetensors")
    with pytest.raises(UserError, match=r"adaptor.safetensors does not fit: 4 weights are missing"):
        from_export(export)
    (export / "config.json").write_text(json.dumps({**config, "format_version": 0}))
    with pytest.raises(UserError, match="has format 0, this code reads 1; export the run again"):
        from_export(export)


def test_a_part_of_a_run_that_trained_lora_comes_with_its_matrices(runs: Path) -> None:
    part, whole = load_trained(runs / "lora", "talkers.ntp"), load_trained(runs / "lora")
    expected = whole.talkers["ntp"].state_dict()
    assert any(".lora_" in key for key in expected) and set(part.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in part.state_dict().items())
    assert {layer.active_adapters[0] for _, layer in lora_layers(part) if not layer.disable_adapters} == {"trained"}


def test_a_description_names_no_other_run(runs: Path) -> None:
    text = json.dumps(self_contained_spec(runs / "comparison"))
    assert "load_trained" not in text and "SpeechCodec" in text and "Thinker" in text
    part = self_contained_spec(runs / "comparison", "talkers.ntp")
    assert part["class_path"].endswith("AutoregressiveTalker") and part["init_args"]["num_codes"] == 240
    with pytest.raises(UserError, match="its configuration describes no talkers.ntp.head"):
        self_contained_spec(runs / "base", "talkers.ntp.head")


def test_published_parts_are_exported_without_the_files_that_they_were_read_from(runs: Path, tmp_path: Path) -> None:
    """VocalNet's talker and adaptor, and NeuCodec: they are gone when the export is read, tokens are the same."""
    checkpoint, neucodec = tmp_path / "vocalnet", tmp_path / "neucodec"
    write_checkpoint(checkpoint, seed=1, eos_bias=-20.0, hidden_size=32, num_codes=65_536, audio_width=32)
    make_model("neucodec").save_pretrained(neucodec)
    ntp = talker_spec("autoregressive.AutoregressiveTalker")
    ntp["init_args"]["num_codes"] = 65_536
    thinker = thinker_spec(runs / "tokenizer")
    thinker["init_args"]["adaptor"] = spec(
        "lightning_modules.thinker.adaptor.Adaptor.from_vocalnet", path=str(checkpoint)
    )
    talker = spec(
        "lightning_modules.talker.vocalnet.vocalnet_talker.VocalNetTalker.from_checkpoint",
        path=str(checkpoint),
        end_of_text_id=END_OF_TEXT_ID,
        state_offset=1,
    )
    module = spec(
        SPEECH_LLM,
        thinker=thinker,
        talkers={"vocalnet": talker, "ntp": ntp},
        thinker_objective=spec("lightning_modules.thinker.objective.ThinkerObjective"),
        decodings={"vocalnet": {"talker": "vocalnet"}, "ntp": {"talker": "ntp"}},
        vocoder=spec(
            "lightning_modules.vocoder.windowed.WindowedCodecVocoder",
            codec=spec("lightning_modules.codec.neucodec.NeuCodec.from_pretrained", path=str(neucodec)),
        ),
        max_text_tokens=8,
        max_speech_s=0.5,
    )
    run = write_run(tmp_path / "beside_ours", module)
    Exporter(run).run(tmp_path)
    expected = answers(load_trained(run))
    for folder in (checkpoint, neucodec):
        shutil.rmtree(folder)
        assert str(folder) not in (tmp_path / "export" / "config.json").read_text()
    llm = from_export(tmp_path / "export")
    assert isinstance(llm.talkers["vocalnet"], VocalNetTalker) and llm.talkers["vocalnet"].state_offset == 1
    found = answers(llm)
    assert found.keys() == {"vocalnet", "ntp"}
    for name, one in found.items():
        assert_same(one, expected[name])
