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
from lightning_modules.acoustics.vocos import Vocos
from lightning_modules.codec.objectives.ramp import Ramp
from lightning_modules.codec.objectives.text_reading import TextReading
from lightning_modules.errors import UserError
from lightning_modules.neural_vocoder import NeuralVocoder
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.talker.vocalnet.sizes import VocalNetSizes
from lightning_modules.talker.vocalnet.vocalnet_talker import VocalNetTalker
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.log_mel import WhisperLogMel
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from lightning_modules.thinker.thinker import Thinker
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from lightning_modules.vocoder.neural_codec_vocoder import NeuralCodecVocoder
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
    "SpeechCodec": lambda: SpeechCodec(channels=(8, 8, 8), text_reading=TextReading(4, Ramp(0.1))),
    "CodecVocoder": lambda: CodecVocoder(SpeechCodec(channels=(8, 8, 8))),
    "Vocos": partial(Vocos, 8, 1),
    "NeuralVocoder": lambda: NeuralVocoder(Vocos(8, 1), SpeechCodec(channels=(8, 8, 8))),
    "NeuralCodecVocoder": lambda: NeuralCodecVocoder(SpeechCodec(channels=(8, 8, 8)), Vocos(8, 1)),
    "SpeechRecognizer": lambda: SpeechRecognizer(ConvSpeechEncoder(16), SpeechAugmentation()),
    "SpeechEncoder": make_speech_encoder,
    "Adaptor": partial(Adaptor, 4, 8),
    "VocalNetTalker": lambda: VocalNetTalker(VocalNetSizes(16, 24, 2, 20)),
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


def from_config(**settings: Any) -> Callable[[], object]:
    """Build a tiny language model."""
    return partial(LanguageModel.from_config, **{"vocab_size": 10, "width": 32, "num_heads": 4, **settings})


def encoder_from_config(**settings: Any) -> Callable[[], object]:
    """Build a tiny speech encoder."""
    return partial(SpeechEncoder.from_config, **{"width": 32, "num_heads": 4, **settings})


def recognizer(**settings: Any) -> Callable[[], object]:
    """Build a tiny recognizer."""
    return lambda: SpeechRecognizer(ConvSpeechEncoder(16), **settings)


NAN, INF = float("nan"), float("inf")
REFUSED: list[tuple[Callable[[], object], str]] = [
    (from_config(width=30), "width is 30, which 2 x num_heads = 8 does not divide; give a multiple of 8, such as 32"),
    (from_config(num_key_value_heads=3), "num_heads is 4, which num_key_value_heads 3 does not divide"),
    (from_config(num_layers=0), "num_layers is 0; give a finite number of at least 1"),
    (from_config(vocab_size=-1), "vocab_size is -1"),
    (from_config(max_positions=0), "max_positions is 0"),
    (from_config(attention="sdpaa"), "attention 'sdpaa' is unknown; choose one of .*sdpa"),
    (lambda: make_language_model().add_lora(rank=0), "lora_rank is 0"),
    (lambda: make_language_model().add_lora(rank=2, alpha=-1.0), "lora_alpha is -1.0; give a finite number above 0"),
    (lambda: make_language_model().add_lora(rank=2, dropout=1.0), "lora_dropout is 1.0; .* at least 0 and below 1"),
    (encoder_from_config(width=34), "width is 34, which num_heads 4 does not divide; give a multiple of 4"),
    (encoder_from_config(width=33, num_heads=3), "width is 33; give an even number"),
    (encoder_from_config(num_layers=0), "num_layers is 0"),
    (encoder_from_config(dropout=1.0), "dropout is 1.0"),
    (encoder_from_config(dropout=NAN), "dropout is nan"),
    (encoder_from_config(pad_to_s=0.0), "pad_to_s is 0.0; give a finite number above 0"),
    (encoder_from_config(pad_to_s=31.0), "pad_to_s is 31.0 s, but the speech encoder has positions for 30.0 s"),
    (encoder_from_config(attention="flash"), "attention 'flash' is unknown"),
    (lambda: WhisperLogMel(0), "num_mel_bins is 0"),
    (lambda: Adaptor(4, 8, num_stacked_frames=0), "num_stacked_frames is 0"),
    (lambda: Adaptor(4, 8, hidden_size=-2), "hidden_size is -2"),
    (lambda: ConvSpeechEncoder(0), "channels is 0"),
    (lambda: ConvSpeechEncoder(8, dilations=(1, 0)), r"dilations\[1\] is 0"),
    (lambda: ConvSpeechEncoder(8, stride=0), "stride is 0"),
    (lambda: ConvSpeechEncoder(8, kernel_size=4), "kernel_size is 4; give an odd number of at least the stride, 3"),
    (lambda: SpeechAugmentation(blur=1.5), "blur is 1.5; give a number from 0 to 1"),
    (lambda: SpeechAugmentation(gain_db=INF), "gain_db is inf"),
    (lambda: SpeechAugmentation(ripple_db=-1.0), "ripple_db is -1.0"),
    (lambda: SpeechAugmentation(num_time_masks=-1), "num_time_masks is -1"),
    (lambda: SpeechAugmentation(noise_db=(50.0, 15.0)), r"noise_db is \[50.0, 15.0\]; give two finite numbers"),
    (lambda: SpeechAugmentation(noise_db=(15.0, NAN)), "noise_db is"),
    (lambda: SpeechAugmentation(noise_db=(15.0,)), "noise_db is"),
    (lambda: SpeechCodec(levels=(8, 2)), r"levels is \[8, 2\]; give at least 3 levels"),
    (lambda: SpeechCodec(channels=(16, 16)), r"channels is \[16, 16\]; give three positive widths"),
    (lambda: SpeechCodec(lookahead_tokens=7), "lookahead_tokens is 7; give a number from 0 to 6"),
    (lambda: SpeechCodec(crop_s=0.0), "crop_s is 0.0"),
    (lambda: SpeechCodec(crop_s=0.05), "crop_s is 0.05; give a multiple of 0.04 s"),
    (lambda: SpeechCodec(learning_rate=0.0), "learning_rate is 0.0; give a finite number above 0"),
    (lambda: SpeechCodec(weight_decay=-0.1), "weight_decay is -0.1"),
    (lambda: SpeechCodec(warmup_steps=-1), "warmup_steps is -1"),
    (lambda: SpeechCodec(seed=-1), "seed is -1; give a number from 0 to 4294967295"),
    (lambda: CodecVocoder(SpeechCodec(), block_tokens=0), "block_tokens is 0"),
    (lambda: CodecVocoder(SpeechCodec(), context_frames=1), "context_frames 1"),
    (lambda: CodecVocoder(SpeechCodec(), block_tokens=1, ahead_frames=4), "ahead_frames is 4; give fewer than"),
    (lambda: CodecVocoder(SpeechCodec(), num_iterations=0), "num_iterations is 0"),
    (lambda: CodecVocoder(SpeechCodec(), momentum=1.0), "momentum is 1.0"),
    (recognizer(learning_rate=NAN), "learning_rate is nan"),
    (recognizer(weight_decay=INF), "weight_decay is inf"),
    (recognizer(seed=2**32), "seed is 4294967296"),
    (recognizer(source="both"), "source is 'both'; choose 'reply' or 'query'"),
    (recognizer(characters="aa"), "characters is 'aa'; give at least one, each once"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_value_out_of_range_is_refused_on_the_meta_device_as_on_the_cpu(
    make: Callable[[], object], message: str, device: str
) -> None:
    with torch.device(device), pytest.raises(UserError, match=message):
        make()


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
