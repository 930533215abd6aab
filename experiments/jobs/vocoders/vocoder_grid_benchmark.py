"""A job that measures what a chunk grid costs: latency, distance from decoding at once, and compute."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import librosa
import numpy as np
import torch
from torch import Tensor

from datamodules.formats.atomic_files import write_json, write_text
from lightning_modules.number_checks import require_at_least, require_positive
from lightning_modules.vocoder.windowed import TokenDecoder, WindowedCodecVocoder


@dataclass(frozen=True)
class ChunkGrid:
    """Tokens of a grid; see :class:`WindowedCodecVocoder`, which checks them."""

    chunk_tokens: int = 25
    lookback_tokens: int = 50
    lookahead_tokens: int = 5
    overlap_tokens: int = 1


class VocoderGridBenchmark:
    """Decodes one row of random tokens on several grids, and at once.

    With random weights it shows the time, and that the grid works. How far a trained decoder's speech on the grid is
    from its speech at once shows with trained weights only: how far its attention reaches is learned.

    Args:
        codec: Whose decoder it is.
        grids: Grids by name.
        duration_s: Seconds of speech.
        block_tokens: Tokens per push, a talker's block.
        num_rounds: Measurements, of which medians are given.
        num_threads: Threads of PyTorch.
        seed: Of the tokens.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        codec: TokenDecoder,
        grids: Mapping[str, ChunkGrid],
        duration_s: float = 8.0,
        block_tokens: int = 16,
        num_rounds: int = 3,
        num_threads: int = 1,
        seed: int = 0,
    ) -> None:
        require_positive(duration_s=duration_s)
        require_at_least(1, block_tokens=block_tokens, num_rounds=num_rounds, num_threads=num_threads)
        require_at_least(0, seed=seed)
        self.vocoders = {name: WindowedCodecVocoder(codec, **vars(grid)) for name, grid in grids.items()}
        self.duration_s, self.block_tokens, self.num_rounds = duration_s, block_tokens, num_rounds
        self.num_threads, self.seed = num_threads, seed

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `results.md` and `measured.json`.

        Args:
            output_dir: The run directory.

        Returns:
            `<grid>/<figure>` for the figures of :meth:`measure`.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        try:
            measured = {name: self.measure(vocoder) for name, vocoder in self.vocoders.items()}
        finally:
            torch.set_num_threads(threads)
        write_json(Path(output_dir) / "measured.json", measured)
        write_text(Path(output_dir) / "results.md", self._table(measured))
        return {f"{name}/{figure}": value for name, row in measured.items() for figure, value in row.items()}

    def measure(self, vocoder: WindowedCodecVocoder) -> dict[str, float]:
        """Measure one grid.

        Returns:
            `wait_s`: speech whose tokens must be there before the first samples; `first_chunk_s`: decoding of these;
            `rtf` and `rtf_at_once`: seconds per second of speech; `compute_factor`: tokens decoded per token;
            `snr_db`: level of the speech at once over its difference from the grid's; `log_mel_db`: mean absolute
            difference of 80 mel bins.
        """
        assert vocoder.token_format is not None
        generator = torch.Generator().manual_seed(self.seed)
        num_tokens = max(1, round(self.duration_s * vocoder.frame_rate_hz))
        tokens = torch.randint(0, vocoder.token_format.codebook_size, (num_tokens,), generator=generator)
        first_s, all_s, at_once_s = [], [], []
        for _ in range(self.num_rounds):
            begin = time.perf_counter()
            at_once = vocoder.decode_at_once(tokens)
            at_once_s.append(time.perf_counter() - begin)
            streamed, first, total = self._stream(vocoder, tokens)
            first_s.append(first)
            all_s.append(total)
        difference = streamed - at_once
        return {
            "wait_s": vocoder.first_chunk_wait_s,
            "first_chunk_s": median(first_s),
            "rtf": median(all_s) * vocoder.frame_rate_hz / num_tokens,
            "rtf_at_once": median(at_once_s) * vocoder.frame_rate_hz / num_tokens,
            "compute_factor": vocoder.compute_factor,
            "snr_db": float(10 * torch.log10(at_once.square().mean() / difference.square().mean().clamp(min=1e-20))),
            "log_mel_db": log_mel_distance(streamed, at_once, vocoder.sample_rate),
        }

    def _stream(self, vocoder: WindowedCodecVocoder, tokens: Tensor) -> tuple[Tensor, float, float]:
        """Push by block; gives the samples, the seconds of the first push that gave any, and of all pushes."""
        stream, pieces, first, total = vocoder.stream(), [], 0.0, 0.0
        blocks = tokens.split(self.block_tokens)
        for number, block in enumerate(blocks, start=1):
            begin = time.perf_counter()
            pieces.append(stream.push(block, last=number == len(blocks)))
            seconds = time.perf_counter() - begin
            total += seconds
            first = first or (seconds if len(pieces[-1]) else 0.0)
        return torch.cat(pieces), first, total

    def _table(self, measured: Mapping[str, Mapping[str, float]]) -> str:
        header: Sequence[str] = (
            "grid (chunk + back + ahead, overlap)", "tokens waited for, s", "first chunk, s", "RTF", "RTF at once",
            "compute factor", "SNR, dB", "log-mel, dB",
        )  # fmt: skip
        rows = []
        for name, row in measured.items():
            grid = self.vocoders[name]
            sizes = f"{grid.chunk_tokens} + {grid.lookback_tokens} + {grid.lookahead_tokens}, {grid.overlap_tokens}"
            keys = ("wait_s", "first_chunk_s", "rtf", "rtf_at_once", "compute_factor", "snr_db", "log_mel_db")
            rows.append([f"{name} ({sizes})", *(f"{row[key]:.2f}" for key in keys)])
        lines: list[Any] = [header, ["---"] * len(header), *rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def log_mel_distance(one: Tensor, other: Tensor, sample_rate: int) -> float:
    """Give the mean absolute difference of two waveforms' log-mel in dB, 80 bins at 100 Hz, over the upper 80 dB."""

    def decibels(waveform: Tensor) -> np.ndarray:
        mel = librosa.feature.melspectrogram(
            y=waveform.cpu().numpy(), sr=sample_rate, n_fft=1024, hop_length=sample_rate // 100, n_mels=80
        )
        return librosa.power_to_db(mel, ref=reference, top_db=None).clip(min=-80.0)

    reference = float(librosa.feature.melspectrogram(y=other.cpu().numpy(), sr=sample_rate, n_mels=80).max())
    return float(np.abs(decibels(one) - decibels(other)).mean())
