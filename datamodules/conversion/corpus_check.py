"""A job that reads a converted corpus from end to end, and shows what is in it."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import soundfile
from matplotlib.figure import Figure
from tqdm import tqdm

from datamodules.formats.atomic_files import write_json
from datamodules.formats.codec_record import read_codec_record
from datamodules.shards.shard_files import (
    DamagedExampleError,
    ShardFiles,
    decode_history,
    decode_query,
    decode_text,
    decode_units,
)
from datamodules.shards.shard_index import INDEX, SHARDS, ShardIndex
from datamodules.workers import map_unordered
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least

SECONDS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Found:
    """What a shard holds: how often each code occurs, and what is wrong."""

    codes: np.ndarray
    damages: list[tuple[str, str]]


class CorpusCheck:
    """Checks every byte of a corpus against its index, and draws what it holds.

    Args:
        corpus: Directory that the conversion wrote.
        num_codes: Size of the codebook; None takes that of the codec's record beside the shards.
        num_samples: Queries that are written as files to listen to, drawn at random.
        num_workers: Processes; 0 works in this one.
        seed: Draws them.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self, corpus: str, num_codes: int | None = None, num_samples: int = 10, num_workers: int = 2, seed: int = 0
    ) -> None:
        require_at_least(1, num_codes=num_codes)
        require_at_least(0, num_samples=num_samples, num_workers=num_workers, seed=seed)
        self.corpus, self.num_codes, self.num_samples = Path(corpus), num_codes, num_samples
        self.num_workers, self.seed = num_workers, seed

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `damages.json`, `lengths.png`, `codes.png` and `samples/`.

        Args:
            output_dir: The run directory.

        Returns:
            Hours, mean lengths, the share of codes in use, and the examples of each set.

        Raises:
            FileNotFoundError: If there is no index.
            UserError: If anything is damaged, or the size of the codebook is neither given nor recorded.
        """
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        index = ShardIndex.load(self.corpus / INDEX)
        parts = [index.take(np.flatnonzero(index.shard_of == shard)) for shard in range(len(index.shards))]
        num_codes = self._codebook_size()
        check = functools.partial(_check, str(self.corpus / SHARDS), num_codes)
        codes, damages = np.zeros(num_codes, dtype=np.int64), []
        with tqdm(total=len(index), desc="checking", unit="dialogue") as progress:
            for own, found in map_unordered(check, parts, self.num_workers):
                codes += found.codes
                damages += found.damages
                progress.update(len(own))
        damages.sort()
        write_json(output_dir / "damages.json", damages)
        _draw_lengths(index).savefig(output_dir / "lengths.png", dpi=120)
        _draw_codes(codes).savefig(output_dir / "codes.png", dpi=120)
        if damages:
            name, problem = damages[0]
            raise UserError(
                f"{self.corpus}: {len(damages)} of {len(index)} examples are damaged, the first {name}: {problem}; all "
                f"are listed in {output_dir / 'damages.json'}; delete their shards and the "
                f"finished.json in {self.corpus}, and run the conversion again, which writes only those shards"
            )
        self._write_samples(index, output_dir / "samples")
        return _statistics(index, codes)

    def _codebook_size(self) -> int:
        record = read_codec_record(str(self.corpus))
        if self.num_codes is None and record is None:
            raise UserError(f"{self.corpus} has no codec.json; give num_codes, the size of its speech tokens' codebook")
        if record is not None and self.num_codes not in (None, record.codebook_size):
            raise UserError(
                f"num_codes is {self.num_codes}, but the codec of {self.corpus} has {record.codebook_size} codes; set "
                f"it to {record.codebook_size}, or leave it out"
            )
        return record.codebook_size if record is not None else cast(int, self.num_codes)

    def _write_samples(self, index: ShardIndex, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        files = ShardFiles(str(self.corpus / SHARDS), index)
        drawn = np.random.default_rng(self.seed).permutation(len(index))[: self.num_samples]
        for row in drawn.tolist():
            parts = files.read(row)
            samples, rate_hz = decode_query(parts["query"])
            soundfile.write(folder / f"{row:09d}.wav", samples.numpy(), rate_hz)
            write_json(folder / f"{row:09d}.json", decode_text(parts["text"]))


def _check(url: str, num_codes: int, index: ShardIndex) -> _Found:
    files = ShardFiles(url, index, num_attempts=1)
    codes, damages = np.zeros(num_codes, dtype=np.int64), []
    for row in range(len(index)):
        name = str(index.ids[row])
        try:
            parts = files.read(row)
            units = decode_units(parts["units"])
            problem = _compare(index, row, parts, units, num_codes)
        except (DamagedExampleError, soundfile.LibsndfileError, OSError) as error:
            problem, units = str(error), np.zeros(0, dtype=np.int64)
        if problem:
            damages.append((name, problem))
        else:
            codes += np.bincount(units, minlength=num_codes)
    return _Found(codes, damages)


def _compare(
    index: ShardIndex, row: int, parts: dict[str, memoryview], units: np.ndarray, num_codes: int
) -> str | None:
    """Tell what of an example does not fit the index."""
    samples, rate_hz = decode_query(parts["query"])
    if abs(len(samples) / rate_hz - index.query_s[row]) > SECONDS_TOLERANCE:
        return f"its query lasts {len(samples) / rate_hz:.3f} s, the index says {index.query_s[row]:.3f} s"
    if len(units) != index.num_units[row]:
        return f"it has {len(units)} speech tokens, the index says {index.num_units[row]}"
    if not 0 <= units.min() <= units.max() < num_codes:
        return f"its speech tokens run from {units.min()} to {units.max()}, but there are {num_codes} codes"
    text = decode_text(parts["text"])
    if text["id"] != index.ids[row]:
        return f"its text is that of {text['id']!r}"
    for audio in decode_history(text, parts["whole"])[1]:
        decode_query(audio)
    return None


def _statistics(index: ShardIndex, codes: np.ndarray) -> dict[str, float]:
    counted = index.num_text_tokens[index.num_text_tokens >= 0]
    return {
        "num_examples": len(index),
        "query_hours": float(index.query_s.sum()) / 3600,
        "mean_query_s": float(index.query_s.mean()),
        "num_speech_tokens": int(index.num_units.sum()),
        "mean_speech_tokens": float(index.num_units.mean()),
        **({"mean_text_tokens": float(counted.mean())} if len(counted) else {}),
        "codes_in_use": float((codes > 0).mean()),
        **{f"num_of_{name}": int((index.set_of == place).sum()) for place, name in enumerate(index.sets.tolist())},
    }


def _draw_lengths(index: ShardIndex) -> Figure:
    shown = {"query, s": index.query_s, "reply, speech tokens": index.num_units}
    if (index.num_text_tokens >= 0).any():
        shown["reply, text tokens"] = index.num_text_tokens[index.num_text_tokens >= 0]
    figure = Figure(figsize=(4 * len(shown), 3), layout="constrained")
    for axes, (label, values) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        axes.hist(values, bins=_bins(values))
        axes.set(xlabel=label, ylabel="dialogues")
    return figure


def _bins(values: np.ndarray, max_bins: int = 60) -> int | np.ndarray:
    """Return bins for a histogram; of integers, each holds equally many of them, or it would look like a comb."""
    if not np.issubdtype(values.dtype, np.integer):
        return max_bins
    width = 1 + int(values.max() - values.min()) // max_bins
    return np.arange(values.min(), values.max() + width + 1, width) - 0.5


def _draw_codes(codes: np.ndarray) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.sort(codes)[::-1])
    axes.set(xlabel="codes, most frequent first", ylabel="times used", yscale="symlog", ylim=(0, None))
    return figure
