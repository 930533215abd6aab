"""The adapted codec: its decoder learns, its tokens stay, and it stands in for the codec that it was made from."""

import copy
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.adapted_codec import AdaptedCodec
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


def adapt(codec: SpeechCodec, folder: Path, steps: int = 15) -> AdaptedCodec:
    adapted = AdaptedCodec(copy.deepcopy(codec), crop_s=0.4, learning_rate=1e-2, warmup_steps=2)
    speech = make_speech()
    batch = SpokenBatch(list("abcd"), [""] * 4, reply=speech, reply_lengths=torch.full((4,), 12_800))
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(adapted, DataLoader([batch] * steps, batch_size=None), DataLoader([batch], batch_size=None))
    return adapted.eval()


def test_the_decoder_learns_and_the_tokens_stay(codec: SpeechCodec, tmp_path: Path) -> None:
    adapted, speech = adapt(codec, tmp_path), make_speech()
    tokens, _ = codec.encode(speech)
    assert torch.equal(adapted.encode(speech)[0], tokens)
    wanted = codec.log_mel(speech)
    before, after = ((one.decode_mel(tokens) - wanted).abs().mean() for one in (codec, adapted))
    assert after < 0.8 * before
    changed = {
        name.split(".")[0]
        for name, value in adapted.state_dict().items()
        if not torch.equal(value, codec.state_dict()[name])
    }
    assert changed == {"decoder"}


def test_untrained_it_is_the_codec_that_it_was_made_from(codec: SpeechCodec) -> None:
    adapted, tokens = AdaptedCodec(copy.deepcopy(codec)), codec.encode(make_speech())[0]
    assert torch.equal(adapted.decode_mel(tokens), codec.decode_mel(tokens))
    assert (adapted.codebook_size, adapted.lookahead_tokens) == (codec.codebook_size, codec.lookahead_tokens)
    assert torch.equal(CodecVocoder(adapted)(tokens[0]), CodecVocoder(codec)(tokens[0]))


def test_a_number_out_of_range_is_refused(codec: SpeechCodec) -> None:
    with pytest.raises(UserError, match="learning_rate is -1"):
        AdaptedCodec(codec, learning_rate=-1)
