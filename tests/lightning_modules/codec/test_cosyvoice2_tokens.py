"""CosyVoice2's tokenizer: what is told when s3tokenizer or its file is missing, and rows that do not mix.

With the package's own class (0.3.0, beside a stand-in for torchaudio) and random weights, the tokens of its `quantize`
were given back; that was tried by hand, because its torchaudio has no build for this PyTorch on a CPU.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.codec.cosyvoice2_tokens import CosyVoice2Tokenizer
from lightning_modules.errors import UserError
from lightning_modules.vocoder.cosyvoice2 import COSYVOICE2_TOKENS


class Loudness(nn.Module):
    """In place of the tokenizer: one token per four frames, by loudness."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def quantize(self, mel: Tensor, mel_len: Tensor) -> tuple[Tensor, Tensor]:
        assert mel.shape == (1, 128, int(mel_len))
        means = mel.mean(1)[:, : int(mel_len) // 4 * 4].unflatten(1, (-1, 4)).mean(-1)
        return (1000 * means).long().clamp(0, 6560), mel_len // 4


def log_mel(audio: Tensor, n_mels: int) -> Tensor:
    return audio.abs().unfold(0, 160, 160).mean(-1).expand(n_mels, -1)


def test_a_row_in_a_batch_is_the_row_alone() -> None:
    codec, speech = CosyVoice2Tokenizer(Loudness(), log_mel), torch.randn(2, 16_000)
    tokens, lengths = codec.encode(speech, torch.tensor([16_000, 6_400]))
    assert tokens.shape == (2, 25) and lengths.tolist() == [25, 10] and not tokens[1, 10:].any()
    assert tokens[1, :10].tolist() == codec.encode(speech[1:, :6_400])[0][0].tolist()
    assert codec.token_format == COSYVOICE2_TOKENS, "what the vocoder takes"
    assert (codec.codebook_size, codec.frame_rate_hz, codec.sample_rate) == (6561, 25, 16_000)


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "speech_tokenizer_v2.onnx"
    with pytest.raises(FileNotFoundError, match="there is no file .*; give speech_tokenizer_v2.onnx"):
        CosyVoice2Tokenizer.from_file(str(file))
    file.write_bytes(b"no tokenizer")
    monkeypatch.setitem(sys.modules, "s3tokenizer", None)
    with pytest.raises(UserError, match="need the package s3tokenizer, which could not be imported"):
        CosyVoice2Tokenizer.from_file(str(file))

    def refuse(path: str) -> None:
        raise RuntimeError(f"{path} is no protobuf")

    package = SimpleNamespace(
        S3TokenizerV2=lambda name: SimpleNamespace(init_from_onnx=refuse), log_mel_spectrogram=log_mel
    )
    monkeypatch.setitem(sys.modules, "s3tokenizer", package)
    with pytest.raises(UserError, match=r"could not be read \(RuntimeError: .* is no protobuf\)"):
        CosyVoice2Tokenizer.from_file(str(file))
    with torch.device("meta"):
        assert CosyVoice2Tokenizer.from_file(str(file)).codebook_size == 6561
