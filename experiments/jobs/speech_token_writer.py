"""A job that writes the speech tokens of a corpus' replies, one `.npy` per reply, as the released sets store them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from datamodules.formats.atomic_files import remove_partial_files, write_array, write_json
from datamodules.formats.codec_record import write_codec_record
from datamodules.formats.released_items import read_items
from datamodules.formats.released_layout import read_audio
from lightning_modules.codec.base import SpeechTokenizer
from lightning_modules.number_checks import require_at_least
from lightning_modules.token_format import TokenFormat

SPLITS = ("train", "validation", "test")


class SpeechTokenWriter:
    """Encodes every reply of a corpus; tokens that are already there are kept, so it may be killed and run again.

    Beside the tokens, `codec.json` says which codec wrote them; DataModules read it.

    Args:
        codec: A trained codec; replies are resampled to what it takes.
        corpus_root: Run directory of the corpus; holds `<set_name>/{train,validation,test}.json` and the reply audio.
        set_name: Folder of the set inside the corpus.
        splits: Which JSON lists to read.
        batch_size: Replies encoded together, of similar length.

    Raises:
        UserError: If the batch size is out of range.
    """

    def __init__(
        self,
        codec: SpeechTokenizer,
        corpus_root: str | Path,
        set_name: str = "spoken_examples",
        splits: tuple[str, ...] | list[str] = SPLITS,
        batch_size: int = 32,
    ) -> None:
        require_at_least(1, batch_size=batch_size)
        self.codec = codec.eval()
        self.corpus_root = Path(corpus_root)
        self.set_name = set_name
        self.splits = tuple(splits)
        self.batch_size = batch_size

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Write `<output_dir>/<units>` for the `units` path of every item.

        Args:
            output_dir: The run directory of this job.

        Returns:
            `<split>/<name>` for the names of `token_statistics`, also written to `<output_dir>/speech_tokens.json`.

        Raises:
            FileNotFoundError: If the corpus or one of its reply files is missing.
            UserError: If an item has no `units` or `reply_speech` key, its audio cannot be read, or another codec has
                written tokens there.
        """
        write_codec_record(Path(output_dir), self.codec.token_format, type(self.codec))
        report: dict[str, Any] = {}
        for split in self.splits:
            tokens = self._write_split(split, Path(output_dir))
            report |= {
                f"{split}/{name}": value for name, value in token_statistics(tokens, self.codec.token_format).items()
            }
        write_json(Path(output_dir) / "speech_tokens.json", report)
        return report

    def _write_split(self, split: str, output_dir: Path) -> list[np.ndarray]:
        pending = []
        paths: set[Path] = set()
        for item in read_items(self.corpus_root / self.set_name / f"{split}.json", ("units", "reply_speech")):
            assert item.units is not None and item.reply_speech is not None, "both are required"
            path = output_dir / item.units
            if path not in paths and not path.is_file():
                audio = self.corpus_root / item.reply_speech
                if not audio.is_file():
                    raise FileNotFoundError(f"{audio}: the reply of {item.id!r} is missing; make the corpus again")
                pending.append((audio.stat().st_size, audio, path))
            paths.add(path)  # examples may share a reply
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
            remove_partial_files(folder)
        pending.sort(key=lambda entry: entry[0])
        with tqdm(total=len(pending), desc=f"speech tokens of {split}", unit="reply") as progress:
            for batch in _batched(pending, self.batch_size):
                self._write_batch([audio for _, audio, _ in batch], [path for _, _, path in batch])
                progress.update(len(batch))
        return [np.load(path) for path in sorted(paths)]

    def _write_batch(self, audios: list[Path], paths: list[Path]) -> None:
        waveforms = [torch.from_numpy(read_audio(audio, self.codec.sample_rate)) for audio in audios]
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        device = self.codec.device
        padded = pad_sequence(waveforms, batch_first=True)
        tokens, token_lengths = self.codec.encode(padded.to(device), lengths.to(device))
        for path, row, length in zip(paths, tokens.cpu(), token_lengths.tolist(), strict=True):
            write_array(path, row[:length].numpy().astype(np.int32))


def token_statistics(tokens: list[np.ndarray], token_format: TokenFormat) -> dict[str, float]:
    """Measure lengths, codebook use and predictability of token sequences.

    Args:
        tokens: Sequences, each ``(T,) int``.
        token_format: Their codebook size and frame rate.

    Returns:
        `num_replies`, `num_tokens`, `hours`, `tokens_mean`, `tokens_max`, `codebook_share` (codes that occur at all),
        `entropy_bits` per token and `entropy_given_previous_bits`.
    """
    lengths = [len(row) for row in tokens]
    singles = Counter(int(token) for row in tokens for token in row)
    pairs = Counter((int(a), int(b)) for row in tokens for a, b in zip(row[:-1], row[1:], strict=True))
    firsts = Counter(int(token) for row in tokens for token in row[:-1])
    return {
        "num_replies": len(tokens),
        "num_tokens": sum(lengths),
        "hours": round(sum(lengths) / token_format.frame_rate_hz / 3600, 4),
        "tokens_mean": round(sum(lengths) / max(1, len(lengths)), 2),
        "tokens_max": max(lengths, default=0),
        "codebook_share": round(len(singles) / token_format.codebook_size, 4),
        "entropy_bits": round(_entropy_bits(singles), 3),
        "entropy_given_previous_bits": round(_entropy_bits(pairs) - _entropy_bits(firsts), 3),
    }


def _entropy_bits(counts: Counter) -> float:
    shares = np.array(list(counts.values()), dtype=np.float64)
    shares = shares / max(1.0, shares.sum())
    return float(-(shares * np.log2(shares)).sum())


def _batched(entries: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(entries), size):
        yield entries[first : first + size]
