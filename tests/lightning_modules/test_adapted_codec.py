"""The adapted codec: a copy of its decoder learns, its tokens stay, and a vocoder chooses the copy as an adapter."""

import copy
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.adapted_codec import AdaptedCodec
from lightning_modules.adapters.adapter_set import AdapterFolder, adapt
from lightning_modules.errors import UserError
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.vocoder.codec_vocoder import CodecVocoder


@pytest.fixture(scope="module")
def codec() -> SpeechCodec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SpeechCodec(levels=(5, 3), channels=(8, 12, 16), lookahead_tokens=2).eval()


def make_speech() -> Tensor:
    time = torch.arange(12_800) / 16_000
    return 0.3 * torch.sin(
        2 * torch.pi * (200 + 400 * torch.rand(4, 1, generator=torch.Generator().manual_seed(0))) * time
    )


def fit(codec: SpeechCodec, folder: Path, units: Tensor | None = None, steps: int = 15) -> AdaptedCodec:
    adapted = AdaptedCodec(copy.deepcopy(codec), crop_s=0.4, learning_rate=1e-2, warmup_steps=2)
    speech = make_speech()
    batch = SpokenBatch(list("abcd"), [""] * 4, reply=speech, reply_lengths=torch.full((4,), 12_800))
    if units is not None:
        batch.units, batch.unit_lengths = units, torch.full((4,), units.shape[1])
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(adapted, DataLoader([batch] * steps, batch_size=None), DataLoader([batch], batch_size=None))
    return adapted.eval()


def test_the_decoder_learns_and_the_tokens_stay(codec: SpeechCodec, tmp_path: Path) -> None:
    adapted, speech = fit(codec, tmp_path), make_speech()
    tokens, _ = codec.encode(speech)
    assert torch.equal(adapted.encode(speech)[0], tokens)
    wanted = codec.log_mel(speech)
    before, after = ((one.decode_mel(tokens) - wanted).abs().mean() for one in (codec, adapted))
    assert after < 0.8 * before
    own = {name.replace(".original_module.", "."): value for name, value in adapted.state_dict().items()}
    for name, value in codec.state_dict().items():
        assert torch.equal(own[name], value), name
    assert {name for name in own if name not in codec.state_dict()} == {
        name for name, one in adapted.named_parameters() if one.requires_grad
    }


@pytest.mark.parametrize("num_tokens", [18, 20, 23])
def test_given_tokens_are_said_as_the_reply_sounds(codec: SpeechCodec, tmp_path: Path, num_tokens: int) -> None:
    """They may be a little fewer or more than the reply has: they are of other speech."""
    units = torch.randint(0, codec.codebook_size, (4, num_tokens), generator=torch.Generator().manual_seed(1))
    adapted, heard = fit(codec, tmp_path, units), min(num_tokens, 20)
    wanted = codec.log_mel(make_speech())[:, :, : 4 * heard]
    before, after = ((one.decode_mel(units)[:, :, : 4 * heard] - wanted).abs().mean() for one in (codec, adapted))
    assert after < 0.8 * before
    assert adapted.trainer.callback_metrics["val/mel_l1"] == pytest.approx(after.item(), rel=0.05)


def test_a_vocoder_speaks_with_the_adapter_that_is_selected(codec: SpeechCodec, tmp_path: Path) -> None:
    adapted, tokens = fit(codec, tmp_path), codec.encode(make_speech())[0]
    adapted.save_adapter(tmp_path / "adapters")
    assert [one.name for one in (tmp_path / "adapters").iterdir()] == ["vocoder.codec"]
    vocoder = CodecVocoder(copy.deepcopy(codec), num_iterations=2)
    base, new = vocoder(tokens[0]), CodecVocoder(adapted, num_iterations=2)(tokens[0])
    folder = AdapterFolder(str(tmp_path / "adapters"))
    adapters = adapt(vocoder.adaptable_parts(), {}, {"voice": folder, "again": folder}, seed=1)
    assert adapters.parts_of("voice") == ["vocoder.codec"]
    for name, wanted in ((None, base), ("voice", new), (None, base), ("again", new)):
        adapters.select(name)
        assert torch.equal(vocoder(tokens[0]), wanted), name
    assert not any(one.requires_grad for one in vocoder.parameters())
    assert adapters.merge("voice")
    assert torch.equal(vocoder(tokens[0]), new)
    assert vocoder.state_dict().keys() == CodecVocoder(copy.deepcopy(codec)).state_dict().keys()


def test_untrained_it_is_the_codec_that_it_was_made_from(codec: SpeechCodec) -> None:
    adapted, tokens = AdaptedCodec(copy.deepcopy(codec)), codec.encode(make_speech())[0]
    assert torch.equal(adapted.decode_mel(tokens), codec.decode_mel(tokens))
    assert (adapted.codebook_size, adapted.lookahead_tokens) == (codec.codebook_size, codec.lookahead_tokens)
    assert torch.equal(CodecVocoder(adapted)(tokens[0]), CodecVocoder(codec)(tokens[0]))


def test_a_number_out_of_range_is_refused(codec: SpeechCodec) -> None:
    with pytest.raises(UserError, match="learning_rate is -1"):
        AdaptedCodec(codec, learning_rate=-1)
