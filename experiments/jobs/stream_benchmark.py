"""A job that measures how fast a converted corpus is read, against loose files read by a plain Dataset."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.batch import SAMPLE_RATE_HZ, SpokenBatch, from_pcm
from datamodules.formats.atomic_files import write_json, write_text
from datamodules.formats.released_items import read_items
from datamodules.sampling.epoch_plan import BatchBudget
from datamodules.sampling.epoch_walk import EpochWalk
from datamodules.sampling.resumable_loader import ResumableLoader
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from datamodules.shards.shard_index import INDEX, ShardIndex
from lightning_modules.acoustics.log_mel import LogMel
from lightning_modules.number_checks import require_at_least

PAPER_EXAMPLES = 730_000
NUM_MEMORIES = 100

# What the page of results shows of the figures measured: of shards and loose files each, and once.
BOTH = "shards", "plain"
COMPARED = (
    ("examples/s (least to most)", "{examples_per_s:.0f} ({examples_per_s_min:.0f} to {examples_per_s_max:.0f})"),
    ("hours of queries per second", "{hours_per_s:.2f}"),
    ("padding of queries", "{query_padding:.1%}"),
    ("padding of speech tokens", "{padding:.1%}"),
)
SINGLE = (
    ("examples of the corpus", "{num_examples:,}"),
    (
        "shards against loose files, pair by pair (least to most)",
        "{speedup:.2f} ({speedup_min:.2f} to {speedup_max:.2f})",
    ),
    ("index read", "{index_s:.2f} s"),
    ("epoch planned", "{plan_s:.2f} s"),
    (f"epoch of {PAPER_EXAMPLES:,} examples planned", "{plan_paper_s:.2f} s"),
    ("state loaded to first batch, at most", "{resume_s:.2f} s"),
    ("resident memory before the index was read", "{rss_begin_mb:.0f} MB"),
    ("at most in the first half of an epoch", "{rss_first_mb:.0f} MB"),
    ("at most in the second half", "{rss_second_mb:.0f} MB"),
    (
        "memory of a reading process, at most in either half",
        "{worker_first_mb:.0f} and {worker_second_mb:.0f} MB",
    ),
    ("log-mel of a query, one by one on one thread", "{log_mel_rows_ms:.2f} ms"),
    ("log-mel of a query, in batches as in the model", "{log_mel_batches_ms:.2f} ms"),
)


@dataclass(frozen=True)
class _Read:
    """What one measurement read."""

    seconds: float
    num_examples: int
    query_samples: int
    query_places: int
    num_tokens: int
    num_places: int


class StreamBenchmark:
    """Reads a corpus in turn from its shards and from the loose files that it was made of, and measures how fast.

    The plain Dataset is the simplest code for the task: it opens the two files of an example, and a DataLoader shuffles
    and pads batches of a fixed size, as many examples as the streamed batches have on average. Both use as many
    processes.

    Args:
        corpus: Directory that the conversion wrote.
        index: JSON list of the loose files.
        query_root: Folder that the queries' paths start from.
        units_root: Folder that the speech tokens' paths start from.
        num_workers: Processes that read.
        max_tokens: Padded speech tokens of a batch.
        num_examples: Examples of one measurement.
        num_rounds: Measurements of each.
        seed: Seeds the shuffling.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        corpus: str,
        index: str,
        query_root: str,
        units_root: str,
        num_workers: int = 2,
        max_tokens: int = 2000,
        num_examples: int = 10_000,
        num_rounds: int = 7,
        seed: int = 0,
    ) -> None:
        require_at_least(1, max_tokens=max_tokens, num_examples=num_examples, num_rounds=num_rounds)
        require_at_least(0, num_workers=num_workers, seed=seed)
        self.corpus, self.index = corpus, Path(index)
        self.query_root, self.units_root = Path(query_root), Path(units_root)
        self.num_workers, self.max_tokens, self.seed = num_workers, max_tokens, seed
        self.num_examples, self.num_rounds = num_examples, num_rounds

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `results.md` and `measured.json`.

        Args:
            output_dir: The run directory.

        Returns:
            Medians of what was measured.

        Raises:
            FileNotFoundError: If a corpus is missing.
            UserError: If its index is damaged.
        """
        measured: dict[str, float] = {"rss_begin_mb": memory_mb()[0]}
        index, index_s = timed(lambda: ShardIndex.load(Path(self.corpus) / INDEX))
        measured |= {"num_examples": len(index), "index_s": index_s}
        measured["plan_s"] = timed(lambda: self._walk(index.num_units, index.query_s))[1]
        measured["resume_s"] = self._resume(index)
        loader = self._data().train_dataloader()
        measured |= self._remember(loader)  # before the list of loose files takes memory, too
        streamed, plain = self._read(loader, len(index))
        many = np.random.default_rng(self.seed).integers(len(index), size=PAPER_EXAMPLES)
        measured["plan_paper_s"] = timed(lambda: self._walk(index.num_units[many], index.query_s[many]))[1]
        for name, reads in zip(BOTH, (streamed, plain), strict=True):
            measured |= {f"{name}_{key}": value for key, value in _summary(reads).items()}
        rates = [one.num_examples / one.seconds for one in streamed], [one.num_examples / one.seconds for one in plain]
        speedups = [fast / slow for fast, slow in zip(*rates, strict=True)]
        measured["speedup"] = statistics.median(speedups)
        measured |= {"speedup_min": min(speedups), "speedup_max": max(speedups)}
        measured |= self._features()
        write_json(Path(output_dir) / "measured.json", measured)
        write_text(Path(output_dir) / "results.md", _table(measured))
        return measured

    def _data(self) -> ShardedDialogueDataModule:
        data = ShardedDialogueDataModule(
            {"corpus": ShardedSet(self.corpus)}, max_tokens=self.max_tokens, max_examples=4096, seed=self.seed,
            num_workers=self.num_workers,
        )  # fmt: skip
        data.setup("fit")
        return data

    def _walk(self, lengths: np.ndarray, query_s: np.ndarray) -> EpochWalk:
        set_of = np.zeros(len(lengths), dtype=np.int64)
        return EpochWalk(set_of, lengths, [1.0], BatchBudget(self.max_tokens, 4096), self.seed, 1, query_s)

    def _resume(self, index: ShardIndex) -> float:
        """Return the seconds from a checkpoint's state to the first batch, the most of several places."""
        num_steps = self._walk(index.num_units, index.query_s).steps_of_epoch
        seconds = []
        for share in np.linspace(0.05, 0.95, self.num_rounds):
            walk = self._walk(index.num_units, index.query_s)
            walk.position = int(share * num_steps)
            state = {"walk": walk.state_dict(), "in_iteration": walk.position}
            data = self._data()
            data.load_state_dict({"train": state})
            seconds.append(timed(lambda data=data: next(iter(data.train_dataloader())))[1])  # type: ignore[misc]
        return max(seconds)

    def _remember(self, loader: ResumableLoader) -> dict[str, float]:
        """Read an epoch, and return the most memory held in each half of it."""
        found: dict[str, float] = {}
        for step, _ in enumerate(tqdm(_stream(loader), "an epoch", len(loader), unit="batch")):
            if step % max(1, len(loader) // NUM_MEMORIES) == 0:
                half = "first" if step < len(loader) / 2 else "second"
                for whose, held_mb in zip(("rss", "worker"), memory_mb(), strict=True):
                    found[f"{whose}_{half}_mb"] = max(held_mb, found.get(f"{whose}_{half}_mb", 0.0))
        return found

    def _read(self, loader: ResumableLoader, num_examples: int) -> tuple[list[_Read], list[_Read]]:
        per_batch = round(num_examples / len(loader))
        items = read_items(self.index, ("speech", "units"))
        files = [(self.query_root / str(item.speech), self.units_root / str(item.units)) for item in items]
        generator = torch.Generator().manual_seed(self.seed)
        plain = DataLoader(
            _LooseFiles(files), per_batch, shuffle=True, collate_fn=_pad, num_workers=self.num_workers,
            generator=generator,
        )  # fmt: skip
        reads: tuple[list[_Read], list[_Read]] = ([], [])
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more threads would spin on the cores that the reading processes need
        with tqdm(total=2 * self.num_rounds, desc="reading", unit="measurement") as progress:
            sources = (lambda: _stream(loader)), (lambda: iter(plain))
            for turn in range(self.num_rounds):
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    reads[which].append(self._measure(sources[which]()))
                    progress.update()
        torch.set_num_threads(num_threads)
        return reads

    def _measure(self, batches: Iterator[dict[str, Any]]) -> _Read:
        """Read `num_examples` examples, up to float32 queries in this process.

        The first batch, which waits for processes to start, does not count.
        """
        next(batches)
        start = time.perf_counter()
        num_examples = query_samples = query_places = num_tokens = num_places = 0
        for batch in batches:
            num_examples += len(batch["ids"])
            query_samples += int(batch["query_lengths"].sum())
            query_places += batch["query"].numel()
            num_tokens += int(batch["unit_lengths"].sum())
            num_places += batch["units"].numel()
            if num_examples >= self.num_examples:
                break
        return _Read(time.perf_counter() - start, num_examples, query_samples, query_places, num_tokens, num_places)

    def _features(self) -> dict[str, float]:
        """Time log-mel one by one on one thread, as a reading process would, and by batches, as the model does."""
        loader = self._data().train_dataloader()
        batches = [from_pcm(batch.query) for batch in itertools.islice(loader, 8) if batch.query is not None]
        log_mel, num_threads = LogMel(), torch.get_num_threads()
        seconds: dict[str, list[float]] = {"rows": [], "batches": []}
        for _ in range(self.num_rounds):
            torch.set_num_threads(1)
            seconds["rows"].append(timed(lambda: [log_mel(row[None]) for batch in batches for row in batch])[1])
            torch.set_num_threads(num_threads)
            seconds["batches"].append(timed(lambda: [log_mel(batch) for batch in batches])[1])
        num_examples = sum(len(batch) for batch in batches)
        return {f"log_mel_{name}_ms": 1000 * statistics.median(all_s) / num_examples for name, all_s in seconds.items()}


def _stream(loader: ResumableLoader) -> Iterator[dict[str, Any]]:
    return map(vars, map(SpokenBatch.to_float, loader))


class _LooseFiles(Dataset):
    """Examples from two files each, opened when they are asked for."""

    def __init__(self, files: list[tuple[Path, Path]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[str, Tensor, Tensor]:
        speech, units = self.files[number]
        query = torch.from_numpy(soundfile.read(speech, dtype="float32")[0])
        return speech.stem, query, torch.from_numpy(np.load(units))


def _pad(rows: list[tuple[str, Tensor, Tensor]]) -> dict[str, Any]:
    ids, queries, units = zip(*rows, strict=True)
    query_lengths, unit_lengths = (torch.tensor([len(row) for row in part]) for part in (queries, units))
    query, padded_units = (pad_sequence(part, batch_first=True) for part in (queries, units))
    tensors = {"query": query, "query_lengths": query_lengths, "units": padded_units, "unit_lengths": unit_lengths}
    return {"ids": list(ids), **tensors}


def _summary(reads: Iterable[_Read]) -> dict[str, float]:
    rates = [one.num_examples / one.seconds for one in reads]
    return {
        "examples_per_s": statistics.median(rates),
        "examples_per_s_min": min(rates),
        "examples_per_s_max": max(rates),
        "hours_per_s": statistics.median(one.query_samples / SAMPLE_RATE_HZ / 3600 / one.seconds for one in reads),
        "query_padding": 1 - sum(one.query_samples for one in reads) / sum(one.query_places for one in reads),
        "padding": 1 - sum(one.num_tokens for one in reads) / sum(one.num_places for one in reads),
    }


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and how many seconds it took."""
    start = time.perf_counter()
    found = function()
    return found, time.perf_counter() - start


def memory_mb() -> tuple[float, float]:
    """Return the resident memory of this process, and the most that a process it started holds by itself."""
    process = psutil.Process()
    workers = [worker.memory_full_info().uss for worker in process.children()]
    return process.memory_info().rss / 1e6, max(workers, default=0) / 1e6


def _table(measured: dict[str, float]) -> str:
    compared = [f"| {what} | {' | '.join(_fill(measured, one, figure) for one in BOTH)} |" for what, figure in COMPARED]
    single = [f"| {what} | {figure.format(**measured)} |" for what, figure in SINGLE]
    heads = ["| | shards | loose files, plain Dataset |", "|---|---|---|"], ["| | |", "|---|---|"]
    return "\n".join([*heads[0], *compared, "", *heads[1], *single]) + "\n"


def _fill(measured: dict[str, float], which: str, figure: str) -> str:
    own = {name.removeprefix(f"{which}_"): value for name, value in measured.items() if name.startswith(which)}
    return figure.format(**own)
