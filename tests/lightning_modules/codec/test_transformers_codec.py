"""NeuCodec and X-Codec2: tokens and samples are those of the classes of transformers, called directly."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, SeamlessM4TFeatureExtractor

from lightning_modules.codec.neucodec import NeuCodec
from lightning_modules.codec.transformers_codec import TransformersCodec
from lightning_modules.codec.xcodec2 import Xcodec2
from lightning_modules.errors import UserError
from lightning_modules.token_format import TokenFormat
from tests.lightning_modules.codec.tiny import make_model

CLASSES: dict[str, type[TransformersCodec]] = {"neucodec": NeuCodec, "xcodec2": Xcodec2}
MODELS = {name: make_model(name) for name in CLASSES}
CODECS = {name: CLASSES[name](model) for name, model in MODELS.items()}
MARGINS = {"neucodec": 0, "xcodec2": 160}  # silence around what Wav2Vec2-BERT hears
FORMATS = {
    "neucodec": TokenFormat("neucodec", 65_536, 50, 24_000),
    "xcodec2": TokenFormat("xcodec2", 65_536, 50, 16_000),
}


def make_speech(samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    loudness = torch.linspace(0.02, 0.3, samples)
    return loudness * torch.randn(samples, generator=generator) + 0.1 * torch.sin(0.05 * torch.arange(samples))


@torch.no_grad()
def call_directly(name: str, waveform: Tensor) -> Tensor:
    """Encode as NeuCodecFeatureExtractor and Xcodec2FeatureExtractor prepare it.

    They call torchaudio, which is no requirement here. Their padding stands below; their filterbank is that of another
    extractor of transformers, SeamlessM4T's, which needs NumPy alone. (With the real extractors and torchaudio's own
    source beside them, all of 1,869 tokens from 1 to 160,000 samples were equal.)
    """
    padded = F.pad(waveform, (0, 1))
    padded = F.pad(padded, (0, -len(padded) % 320))
    extractor = SeamlessM4TFeatureExtractor(padding_value=1.0)
    heard = F.pad(padded, (MARGINS[name], MARGINS[name])).numpy()
    inputs = extractor(heard, sampling_rate=16_000, return_tensors="pt")
    encoded = MODELS[name].encode(
        padded[None, None], inputs["input_features"], input_features_mask=inputs["attention_mask"]
    )
    return encoded.audio_codes[0, 0]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("samples", [700, 3_200, 16_000, 33_333, 160_000])
def test_tokens_are_those_of_the_class_called_directly(name: str, samples: int) -> None:
    waveform = make_speech(samples)
    tokens, lengths = CODECS[name].encode(waveform[None])
    expected = call_directly(name, waveform)
    assert tokens[0].tolist() == expected.tolist() and lengths.tolist() == [len(expected)]
    assert len(expected) == samples // 320 + (name == "xcodec2")
    assert samples < 3_000 or len(set(expected.tolist())) > 5, "random weights, but not one token for all"


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=15, deadline=None)
@given(num_tokens=st.integers(1, 500))
def test_samples_are_those_of_the_class_called_directly(name: str, num_tokens: int) -> None:
    tokens = torch.randint(0, 65_536, (1, num_tokens), generator=torch.Generator().manual_seed(num_tokens))
    with torch.no_grad():
        expected = MODELS[name].decode(audio_codes=tokens[:, None]).audio_values[:, 0]
    assert torch.equal(CODECS[name].decode(tokens), expected)
    assert expected.shape == (1, num_tokens * FORMATS[name].samples_per_token)


@pytest.mark.parametrize("name", CLASSES)
def test_a_row_in_a_batch_is_the_row_alone(name: str) -> None:
    rows = [make_speech(samples) for samples in (1_000, 7_000, 5)]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=9.0)
    tokens, lengths = CODECS[name].encode(batch, torch.tensor([len(row) for row in rows]))
    for row, found, length in zip(rows, tokens, lengths.tolist(), strict=True):
        alone, _ = CODECS[name].encode(row[None])
        assert found[:length].tolist() == alone[0].tolist() and not found[length:].any()
    assert lengths.tolist() == ([3, 21, 1] if name == "neucodec" else [4, 22, 1])


@pytest.mark.parametrize("name", CLASSES)
def test_autocast_changes_nothing(name: str) -> None:
    waveform, tokens = make_speech(4_000)[None], torch.arange(0, 65_536, 5_000)[None]
    with torch.autocast("cpu", torch.bfloat16):
        encoded, decoded = CODECS[name].encode(waveform)[0], CODECS[name].decode(tokens)
    assert torch.equal(encoded, CODECS[name].encode(waveform)[0])
    assert torch.equal(decoded, CODECS[name].decode(tokens))


@pytest.mark.parametrize("name", CLASSES)
def test_a_saved_model_is_loaded_and_built_without_weights(name: str, tmp_path: Path) -> None:
    model: PreTrainedModel = MODELS[name]
    model.save_pretrained(tmp_path)
    loaded, tokens = CLASSES[name].from_pretrained(tmp_path), torch.tensor([[1, 65_535, 7]])
    assert torch.equal(loaded.decode(tokens), CODECS[name].decode(tokens))
    assert loaded.encode(make_speech(960)[None])[0].tolist() == CODECS[name].encode(make_speech(960)[None])[0].tolist()
    with torch.device("meta"):
        planned = CLASSES[name].from_pretrained(tmp_path, dtype="bfloat16")
    assert planned.token_format == loaded.token_format == FORMATS[name]
    assert {parameter.dtype for parameter in planned.parameters()} == {torch.bfloat16}
    # transformers makes this one vector by torch.Tensor(size), which knows no default device
    there = {name for name, parameter in planned.named_parameters() if not parameter.is_meta}
    assert there <= {"model.semantic_encoder.masked_spec_embed"}
    shapes = [{key: value.shape for key, value in one.named_parameters()} for one in (planned, loaded)]
    assert shapes[0] == shapes[1]


def test_other_models_and_settings_are_refused(tmp_path: Path) -> None:
    MODELS["neucodec"].save_pretrained(tmp_path)
    with pytest.raises(UserError, match="xcodec2: .* holds a neucodec model; give a xcodec2 model"):
        Xcodec2.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="neucodec: there is no directory"):
        NeuCodec.from_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="dtype 'half' is unknown"):
        NeuCodec.from_pretrained(tmp_path, dtype="half")
    with pytest.raises(UserError, match="attention 'flash' is unknown"):
        NeuCodec.from_pretrained(tmp_path, attention="flash")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neucodec: nothing could be loaded"):
        NeuCodec.from_pretrained(tmp_path)
    config = make_model("neucodec").config
    config.input_sampling_rate = 24_000
    with pytest.raises(UserError, match="neucodec takes speech at 24000 Hz; only 16000 Hz"):
        NeuCodec(type(MODELS["neucodec"])(config))
    with pytest.raises(UserError, match=r"waveform must be \(batch, samples\)"):
        CODECS["neucodec"].encode(torch.zeros(400))
    with pytest.raises(UserError, match=r"lengths \[500\] do not fit"):
        CODECS["neucodec"].encode(torch.zeros(1, 400), torch.tensor([500]))


def test_random_weights_of_the_published_size_are_a_function_of_the_seed() -> None:
    with torch.device("meta"):
        codec = NeuCodec.with_random_weights(num_semantic_layers=16)
    decoder = sum(one.numel() for one in codec.model.acoustic_decoder.parameters())
    assert 180e6 < decoder < 200e6 and codec.token_format == FORMATS["neucodec"]
