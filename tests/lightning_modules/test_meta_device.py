"""Every part can be built on the meta device, where an experiment's settings are checked before anything runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, WhisperConfig, WhisperModel

from lightning_modules.acoustics.conv_speech_encoder import ConvSpeechEncoder
from lightning_modules.acoustics.log_mel import LogMel
from lightning_modules.acoustics.speech_augmentation import SpeechAugmentation
from lightning_modules.errors import UserError
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.log_mel import WhisperLogMel
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from lightning_modules.thinker.thinker import Thinker
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from tests.lightning_modules.thinker.tiny import make_language_model, make_speech_encoder, make_tokenizer

WHISPER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_source_positions": 100,
}


def make_thinker(tokenizer: Any = None) -> Thinker:
    return Thinker(make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), tokenizer or make_tokenizer())


def make_with_lora() -> LanguageModel:
    language_model = make_language_model()
    language_model.add_lora(rank=2)
    return language_model


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "LogMel": LogMel,
    "WhisperLogMel": WhisperLogMel,
    "SpeechAugmentation": SpeechAugmentation,
    "ConvSpeechEncoder": partial(ConvSpeechEncoder, 16),
    "SpeechCodec": partial(SpeechCodec, channels=(8, 8, 8)),
    "CodecVocoder": lambda: CodecVocoder(SpeechCodec(channels=(8, 8, 8))),
    "SpeechRecognizer": lambda: SpeechRecognizer(ConvSpeechEncoder(16), SpeechAugmentation()),
    "SpeechEncoder": make_speech_encoder,
    "Adaptor": partial(Adaptor, 4, 8),
    "LanguageModel": make_language_model,
    "LanguageModel with LoRA": make_with_lora,
    "Thinker": make_thinker,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_builds_on_the_meta_device_without_weights(name: str) -> None:
    with torch.device("meta"):
        module = BUILDERS[name]()
    assert all(parameter.is_meta for parameter in module.parameters())
    on_cpu = BUILDERS[name]()
    shapes = [{key: value.shape for key, value in one.named_parameters()} for one in (module, on_cpu)]
    assert shapes[0] == shapes[1]


def test_a_codec_knows_its_codebook_on_the_meta_device() -> None:
    with torch.device("meta"):
        codec = SpeechCodec(levels=(4, 5, 6))
    assert (codec.codebook_size, codec.left_context_tokens) == (120, 8)


def write_configs(folder: Path) -> None:
    """Write the configurations of a Whisper and a causal LM, without weights."""
    WhisperConfig(**WHISPER, architectures=["WhisperModel"]).save_pretrained(folder / "whisper")
    language_model = make_language_model().causal_lm.config
    assert isinstance(language_model, Qwen3Config)
    language_model.save_pretrained(folder / "qwen3")


def test_pretrained_parts_are_built_from_their_configuration_alone(tmp_path: Path) -> None:
    write_configs(tmp_path)
    with torch.device("meta"):
        encoder = SpeechEncoder.from_pretrained(tmp_path / "whisper", dtype="bfloat16", pad_to_s=None)
        language_model = LanguageModel.from_pretrained(tmp_path / "qwen3", lora_rank=2, lora_targets=["q_proj"])
        thinker = Thinker(encoder, Adaptor(32, 32, 64), language_model, make_tokenizer())
    assert all(parameter.is_meta for parameter in thinker.parameters())
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert (encoder.max_samples, language_model.vocab_size) == (32_000, 304)
    with pytest.raises(FileNotFoundError, match="language model: nothing could be loaded"):
        LanguageModel.from_pretrained(tmp_path / "qwen3")  # off the meta device the weights are missed


def test_saved_lora_matrices_lead_to_their_model(tmp_path: Path) -> None:
    make_language_model().save_pretrained(tmp_path / "base")
    LanguageModel.from_pretrained(tmp_path / "base", lora_rank=2).save_pretrained(tmp_path / "lora")
    with torch.device("meta"):
        assert LanguageModel.from_pretrained(tmp_path / "lora").hidden_size == 32


PRETRAINED: list[tuple[Callable[[Path], object], type[Exception], str]] = [
    (lambda path: LanguageModel.from_pretrained(path / "none"), FileNotFoundError, "there is no directory"),
    (lambda path: SpeechEncoder.from_pretrained(path / "none"), FileNotFoundError, "there is no directory"),
    (lambda path: LanguageModel.from_pretrained(path), FileNotFoundError, "nothing could be loaded"),
    (
        lambda path: LanguageModel.from_pretrained(path / "qwen3", lora_rank=2, lora_targets=["query"]),
        UserError,
        r"\['query'\] are no linear layers",
    ),
    (lambda path: LanguageModel.from_pretrained(path / "qwen3", dtype="half"), UserError, "dtype 'half' is unknown"),
    (lambda path: SpeechEncoder.from_pretrained(path / "qwen3"), UserError, "holds a qwen3 model; give a Whisper"),
    (lambda path: SpeechEncoder.from_pretrained(path / "whisper", pad_to_s=30.0), UserError, "positions for 2.0 s"),
]


@pytest.mark.parametrize(("load", "error", "message"), PRETRAINED)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_wrong_pretrained_part_is_refused_as_on_the_cpu(
    tmp_path: Path, load: Callable[[Path], object], error: type[Exception], message: str, device: str
) -> None:
    write_configs(tmp_path)
    if device == "cpu":
        WhisperModel(WhisperConfig(**WHISPER)).save_pretrained(tmp_path / "whisper")
        make_language_model().save_pretrained(tmp_path / "qwen3")
    with torch.device(device), pytest.raises(error, match=message):
        load(tmp_path)


def test_the_tokenizer_of_an_earlier_stage_is_awaited_on_the_meta_device_only(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer"
    with torch.device("meta"):
        thinker = make_thinker(path)
    with pytest.raises(FileNotFoundError, match="tokenizer: there is no directory"):
        make_thinker(path)
    make_tokenizer().save_pretrained(path)
    assert thinker.prompt.encode_replies(["Yes."]) == make_thinker(path).prompt.encode_replies(["Yes."])
    make_tokenizer(("<|im_start|>",)).save_pretrained(path)
    with torch.device("meta"), pytest.raises(UserError, match=r"has no token '<\|audio\|>'"):
        make_thinker(path)
