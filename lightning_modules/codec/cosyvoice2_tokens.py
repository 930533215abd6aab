"""CosyVoice2's speech tokens, by the package s3tokenizer."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.codec.base import split_rows
from lightning_modules.errors import UserError
from lightning_modules.pretrained.meta_device import is_on_meta
from lightning_modules.token_format import TokenFormat

PACKAGE = "s3tokenizer"
# the package tells versions of the tokenizer apart by this name
MODEL_NAME = "speech_tokenizer_v2_25hz"
SAMPLE_RATE = 16_000
NUM_MELS = 128


class CosyVoice2Tokenizer(nn.Module):
    """Speech at 16 kHz to 25 tokens per second, of which ``CosyVoice2Vocoder`` makes speech.

    Rows are encoded one by one, so that a row's tokens are those of the row alone.

    Args:
        model: ``s3tokenizer.S3TokenizerV2``, or a part without weights when built to be checked.
        log_mel: ``s3tokenizer.log_mel_spectrogram``.

    Reference: CosyVoice 2, arXiv 2412.10117.
    """

    sample_rate = SAMPLE_RATE
    token_format = TokenFormat("cosyvoice2", 6561, 25, 24_000)

    def __init__(self, model: nn.Module, log_mel: Any) -> None:
        super().__init__()
        self.model: Any = model.eval().requires_grad_(False)
        self.log_mel = log_mel

    @classmethod
    def from_file(cls, path: str) -> "CosyVoice2Tokenizer":
        """Load the tokenizer of CosyVoice2.

        Args:
            path: ``speech_tokenizer_v2.onnx`` of CosyVoice2-0.5B, or the ``.pt`` file that s3tokenizer makes of it.

        Raises:
            FileNotFoundError: If there is no such file.
            UserError: If s3tokenizer cannot be imported or cannot read the file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"CosyVoice2's tokenizer: there is no file {path}; give speech_tokenizer_v2.onnx of CosyVoice2-0.5B"
            )
        package = import_package()
        if is_on_meta():
            return cls(nn.Identity(), package.log_mel_spectrogram)
        model = package.S3TokenizerV2(MODEL_NAME)
        load = model.init_from_onnx if path.endswith(".onnx") else model.init_from_pt
        try:
            load(path)
        except Exception as error:
            # onnx, torch and the package each have errors of their own for a file that is not theirs
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            raise UserError(
                f"CosyVoice2's tokenizer: {path} could not be read ({reason}); give speech_tokenizer_v2.onnx of "
                "CosyVoice2-0.5B"
            ) from error
        return cls(model, package.log_mel_spectrogram)

    @property
    def codebook_size(self) -> int:
        """Number of distinct tokens; ids are 0 .. codebook_size - 1."""
        return self.token_format.codebook_size

    @property
    def frame_rate_hz(self) -> float:
        """Tokens per second of speech."""
        return self.token_format.frame_rate_hz

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize speech, ``(B, S) float32`` at 16 kHz; see :meth:`SpeechTokenizer.encode`."""
        rows = []
        for row in split_rows(waveform, lengths):
            with torch.autocast(self.device.type, enabled=False):
                mel = self.log_mel(row.to(self.device, torch.float32), n_mels=NUM_MELS)
                tokens, counts = self.model.quantize(mel[None], torch.tensor([mel.shape[1]], device=self.device))
            rows.append(tokens[0, : int(counts[0])].long().clone())
        return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows], device=self.device)


def import_package() -> Any:
    """Import s3tokenizer.

    Raises:
        UserError: If it is not installed, or what it needs is not.
    """
    try:
        return importlib.import_module(PACKAGE)
    except (ImportError, OSError) as error:  # OSError: a torchaudio that was built for another PyTorch
        raise UserError(
            f"CosyVoice2's tokens need the package {PACKAGE}, which could not be imported ({error}); install "
            f"{PACKAGE}, onnx, einops and a torchaudio that was built for the installed PyTorch"
        ) from error
