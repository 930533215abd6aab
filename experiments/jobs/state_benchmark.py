"""A job that measures how fast stored text states are read at scale, against running the thinker on each batch."""

from __future__ import annotations

import copy
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.batch import SpokenBatch, bits_of
from datamodules.formats.atomic_files import write_json, write_text
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from datamodules.shards.shard_files import ShardFiles, decode_query, decode_text, decode_units
from datamodules.shards.shard_index import INDEX, SHARDS, PackedExample, ShardIndex, ShardWriter
from datamodules.shards.sharded_examples import open_corpus
from datamodules.shards.text_state_files import StoredStates, TextStateFiles
from datamodules.shards.text_state_index import TEXT_STATES, StateShardWriter, TextStateIndex
from experiments.jobs.stream_benchmark import memory_mb, timed
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.stored_text_states import stored_states
from lightning_modules.thinker.thinker import Thinker

# What is kept of the queries of repeated examples, which nobody reads.
KEPT_QUERY_SAMPLES = 160
EXAMPLES_PER_SHARD = 8192
NUM_MEMORIES = 200

ROWS = (
    ("examples of the epoch", "{num_examples:,}"),
    ("bytes of token ids and hidden states", "{num_bytes:,}"),
    ("files of text states, in these bytes", "{bytes_on_disk_per_byte:.3f}"),
    ("examples/s, stored states (least to most)", "{stored:.0f} ({stored_min:.0f} to {stored_max:.0f})"),
    ("text tokens/s, stored states", "{stored_tokens:.0f}"),
    ("examples/s, thinker pass per batch (least to most)", "{thinker:.0f} ({thinker_min:.0f} to {thinker_max:.0f})"),
    ("text tokens/s, thinker pass per batch", "{thinker_tokens:.0f}"),
    (
        "stored states over a thinker pass, of a round (least to most)",
        "{speedup:.0f} ({speedup_min:.0f} to {speedup_max:.0f})",
    ),
    (
        "resident memory at most, quarters of the epoch",
        "{rss_1_mb:.0f}, {rss_2_mb:.0f}, {rss_3_mb:.0f}, {rss_4_mb:.0f} MB",
    ),
    ("places resumed from, with the same next batch", "{num_resumed}"),
    ("state loaded to first batch, at most", "{resume_s:.2f} s"),
)


class StateBenchmark:
    """Repeats a converted corpus with its text states under new names, streams an epoch of it, and measures.

    Each repeated example is stored again, with all but the first 10 ms of its query. A measurement takes batches up to
    what a talker gets: hidden states and looked-up embeddings, once stored and once from a thinker pass over queries of
    the corpus itself, under bfloat16 autocast. Both take turns.

    Args:
        corpus: Directory that the conversion wrote.
        text_states: Directory whose `text_states/` holds those of the corpus.
        thinker: The thinker that wrote them.
        num_examples: Examples of the epoch.
        num_measured: Examples of one measurement of stored states; of the thinker, a tenth.
        num_rounds: Measurements of each, and places to resume from.
        num_workers: Processes that read.
        max_tokens: Padded speech tokens of a batch.
        seed: Seeds the shuffling.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        corpus: str,
        text_states: str,
        thinker: Thinker,
        num_examples: int = 100_000,
        num_measured: int = 20_000,
        num_rounds: int = 5,
        num_workers: int = 1,
        max_tokens: int = 2000,
        seed: int = 0,
    ) -> None:
        require_at_least(1, num_examples=num_examples, num_measured=num_measured, num_rounds=num_rounds)
        require_at_least(0, num_workers=num_workers, seed=seed)
        require_at_least(1, max_tokens=max_tokens)
        self.corpus, self.text_states, self.thinker = corpus, text_states, thinker
        self.num_examples, self.num_measured, self.num_rounds = num_examples, num_measured, num_rounds
        self.num_workers, self.max_tokens, self.seed = num_workers, max_tokens, seed

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write the large corpus to `large/`, and `measured.json` and `results.md`.

        Args:
            output_dir: The run directory.

        Returns:
            What was measured.

        Raises:
            FileNotFoundError: If the corpus or its text states are missing.
            UserError: If resuming gives other batches.
        """
        large = Path(output_dir) / "large"
        self.thinker.eval()
        measured = self._enlarge(large)
        measured |= self._read_epoch(large)
        data = {"stored": (str(large), ("units", TEXT_STATES)), "thinker": (self.corpus, ("units", "query"))}
        make: dict[str, Callable[[SpokenBatch], Tensor]] = {
            "stored": lambda batch: stored_states(self.thinker, batch).embedding,
            "thinker": self._think,
        }
        limits = {"stored": self.num_measured, "thinker": max(1, self.num_measured // 10)}
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in data}
        for _ in tqdm(range(self.num_rounds), "stored states and thinker passes in turn", unit="round"):
            for name, (corpus, fields) in data.items():
                rates[name].append(self._rate(corpus, fields, make[name], limits[name]))
        for name, own in rates.items():
            per_s = [examples for examples, _ in own]
            measured |= {name: statistics.median(per_s), f"{name}_min": min(per_s), f"{name}_max": max(per_s)}
            measured[f"{name}_tokens"] = statistics.median(tokens for _, tokens in own)
        ratios = [stored / passed for (stored, _), (passed, _) in zip(rates["stored"], rates["thinker"], strict=True)]
        measured |= {"speedup": statistics.median(ratios), "speedup_min": min(ratios), "speedup_max": max(ratios)}
        write_json(Path(output_dir) / "measured.json", measured)
        rows = [f"| {what} | {figure.format(**measured)} |" for what, figure in ROWS]
        write_text(Path(output_dir) / "results.md", "\n".join(["| | |", "|---|---|", *rows]) + "\n")
        return measured

    def _enlarge(self, large: Path) -> dict[str, float]:
        """Write the repeated corpus, and return its sizes."""
        source = open_corpus(self.corpus)
        states = TextStateFiles.open(self.text_states, source.index.ids, source.url)
        thinker, width = str(states.index.thinker), int(states.index.hidden_size)
        kept = [_keep(source, states, row) for row in range(min(len(source.index), self.num_examples))]
        (large / SHARDS).mkdir(parents=True, exist_ok=True)
        (large / TEXT_STATES / SHARDS).mkdir(parents=True, exist_ok=True)
        parts: list[ShardIndex] = []
        state_parts: list[TextStateIndex] = []
        with tqdm(total=self.num_examples, desc="repeating", unit="dialogue") as progress:
            for start in range(0, self.num_examples, EXAMPLES_PER_SHARD):
                numbers = range(start, min(start + EXAMPLES_PER_SHARD, self.num_examples))
                speech = large / SHARDS / f"{start:09d}.tar"
                text = large / TEXT_STATES / SHARDS / f"{start:09d}.bin"
                with ShardWriter.create(speech) as writer, StateShardWriter.create(text, thinker, width) as beside:
                    for number in numbers:
                        example, stored = kept[number % len(kept)]
                        name = f"{number:09d}"
                        writer.write(name, replace(example, id=name))
                        bits = bits_of(stored.hidden)
                        beside.write(name, example.reply, stored.token_ids.numpy(), bits)
                    progress.update(len(numbers))
                parts.append(ShardIndex.load(speech.with_suffix(".npz")))
                state_parts.append(TextStateIndex.load(text.with_suffix(".npz")))
        ShardIndex.join(parts).save(large / INDEX)
        index = TextStateIndex.join(state_parts)
        index.save(large / TEXT_STATES / INDEX)
        on_disk = sum(file.stat().st_size for file in (large / TEXT_STATES).rglob("*") if file.is_file())
        sizes = {"num_examples": len(index), "num_bytes": index.num_bytes}
        return {**sizes, "bytes_on_disk_per_byte": on_disk / index.num_bytes}

    def _data(self, corpus: str, fields: tuple[str, ...]) -> ShardedDialogueDataModule:
        data = ShardedDialogueDataModule(
            {"corpus": ShardedSet(corpus)}, fields=fields, max_tokens=self.max_tokens, max_examples=4096,
            seed=self.seed, num_workers=self.num_workers,
        )  # fmt: skip
        data.setup("fit")
        return data

    def _read_epoch(self, large: Path) -> dict[str, float]:
        """Read an epoch, then resume at places in it and compare the next batch.

        Returns:
            The most memory held in each quarter of the epoch, and the most seconds from a state to the first batch.
        """
        fields = ("units", TEXT_STATES)
        loader = self._data(str(large), fields).train_dataloader()
        places = {int(share * len(loader)) for share in np.linspace(0.05, 0.95, self.num_rounds)}
        states: dict[int, dict[str, Any]] = {}
        expected: dict[int, SpokenBatch] = {}
        found: dict[str, float] = {"resume_s": 0.0}
        seen = 0
        for step, batch in enumerate(tqdm(loader, "an epoch", len(loader), unit="batch")):
            seen += len(batch)
            if step in states:
                expected[step] = batch
            if step + 1 in places:
                states[step + 1] = copy.deepcopy(loader.state_dict())
            if step % max(1, len(loader) // NUM_MEMORIES) == 0:
                quarter = f"rss_{1 + 4 * step // len(loader)}_mb"
                found[quarter] = max(sum(memory_mb()), found.get(quarter, 0.0))
        if seen != self.num_examples:
            raise UserError(f"an epoch gave {seen} of {self.num_examples} examples; check the disk")
        for place, batch in expected.items():
            data = self._data(str(large), fields)
            data.load_state_dict({"train": states[place]})
            again, taken_s = timed(lambda data=data: next(iter(data.train_dataloader())))  # type: ignore[misc]
            found["resume_s"] = max(found["resume_s"], taken_s)
            if again.ids != batch.ids or not torch.equal(again.text_hidden, batch.text_hidden):
                raise UserError(f"resumed at batch {place}, the next batch is another; do not trust this corpus")
        return {**found, "num_resumed": len(expected)}

    def _rate(
        self, corpus: str, fields: tuple[str, ...], make: Callable[[SpokenBatch], Tensor], limit: int
    ) -> tuple[float, float]:
        """Return examples and text tokens per second; the first batch, which waits for processes, does not count."""
        batches = _endless(self._data(corpus, fields))
        make(next(batches))
        start, num_examples, num_tokens = time.perf_counter(), 0, 0
        while num_examples < limit:
            batch = next(batches)
            num_examples += len(batch)
            num_tokens += int((make(batch) != 0).any(dim=-1).sum())
        seconds = time.perf_counter() - start
        return num_examples / seconds, num_tokens / seconds

    def _think(self, batch: SpokenBatch) -> Tensor:
        heard = batch.to_float()
        assert heard.query is not None and heard.query_lengths is not None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return self.thinker(heard.query, heard.query_lengths, heard.reply_texts).embedding


def _endless(data: ShardedDialogueDataModule) -> Iterator[SpokenBatch]:
    loader = data.train_dataloader()
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _keep(source: ShardFiles, states: TextStateFiles, row: int) -> tuple[PackedExample, StoredStates]:
    """Return an example with the beginning of its query, and its text states."""
    parts = source.read(row)
    samples, rate_hz = decode_query(parts["query"])
    kept = samples[:KEPT_QUERY_SAMPLES]
    query = io.BytesIO()
    soundfile.write(query, kept.numpy(), rate_hz, format="WAV", subtype="PCM_16")
    reply, units = decode_text(parts["text"])["reply"], decode_units(parts["units"]).astype(np.int32)
    example = PackedExample("", "repeated", query.getvalue(), "wav", len(kept) / rate_hz, units, reply)
    return example, states.read(row, reply)
