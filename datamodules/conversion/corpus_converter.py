"""A job that writes a corpus as tar shards with one index, from whatever it comes in."""

import contextlib
import functools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoTokenizer

from datamodules.conversion.packing import Fault, Packer, PackingRules
from datamodules.formats.atomic_files import remove_partial_files, write_json, write_text
from datamodules.formats.codec_record import copy_codec_record
from datamodules.formats.corpus_files import CorpusFiles, open_files
from datamodules.formats.item_errors import ItemError
from datamodules.formats.parquet_tables import RowPlace, read_places
from datamodules.formats.released_items import parse_id, read_entries
from datamodules.shards.shard_index import INDEX, SHARDS, ShardIndex, ShardWriter
from datamodules.workers import map_unordered
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive

REPORT, RESULTS = "report.json", "results.md"


@dataclass(frozen=True)
class _Group:
    """Examples that a worker converts together: either all of them are kept when a run is killed, or none."""

    name: str
    first: int
    entries: list[tuple[str, Any]]


@dataclass(frozen=True)
class _Settings:
    """What workers must know."""

    folder: Path
    files: tuple[Path, ...]
    rules: PackingRules
    tokenizer: str | None
    max_shard_bytes: int


class CorpusConverter:
    """Converts a list of spoken dialogues into shards of bounded size with an index.

    It may be killed at any time and run again: groups that are done, and whose shards are there, are kept. What is
    wrong with an example is counted by kind and listed with its path in `report.json`; the good rest is kept.

    Args:
        index: A JSON list or JSON lines in the released layout, or a folder of Parquet tables with audio bytes.
        files: Folders, `.tar` or `.zip` archives that the paths of the list start from, searched in order.
        rules: What an example has to be, and how it is stored.
        tokenizer: Folder or name of the text tokenizer that counts the text tokens of replies, and whose special tokens
            no text may hold; without one, text tokens are not counted.
        num_workers: Processes; 0 works in this one.
        examples_per_group: Examples per worker that are converted again, at most, after the job was killed.
        max_shard_mb: A shard is closed when it has grown to this size.
        strict: Stop at the first fault.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        index: str,
        files: Sequence[str] = (),
        rules: PackingRules | None = None,
        tokenizer: str | None = None,
        num_workers: int = 2,
        examples_per_group: int = 2000,
        max_shard_mb: float = 256.0,
        strict: bool = False,
    ) -> None:
        require_at_least(0, num_workers=num_workers)
        require_at_least(1, examples_per_group=examples_per_group)
        require_positive(max_shard_mb=max_shard_mb)
        self.index, self.files = Path(index), tuple(Path(path) for path in files)
        self.rules, self.tokenizer, self.strict = rules or PackingRules(), tokenizer, strict
        self.num_workers, self.examples_per_group, self.max_shard_mb = num_workers, examples_per_group, max_shard_mb

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `shards/*.tar`, `index.npz`, `report.json`, a table, `results.md`, and the codec's record if known.

        Args:
            output_dir: The run directory.

        Returns:
            Numbers of examples, shards and faults (also by kind), hours of queries and speech tokens.

        Raises:
            FileNotFoundError: If the list, a folder or an archive is missing.
            UserError: If one of them cannot be read, the tokens are not of the codebook, nothing good is left, or, if
                strict, at the first fault.
        """
        folder = Path(output_dir) / SHARDS
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        entries, faults = _name(read_places(self.index) if self.index.is_dir() else read_entries(self.index))
        open_files(self.files)  # an error is raised here, not in a worker
        record = copy_codec_record(list(self.files), Path(output_dir), self.rules.num_codes)
        rules = self.rules
        if record is not None:
            rules = replace(rules.at_rate(record.frame_rate_hz), num_codes=record.codebook_size)
        groups = self._groups(entries)
        settings = _Settings(folder, self.files, rules, self.tokenizer, round(self.max_shard_mb * 1e6))
        pending = [group for group in groups if not _is_done(folder, group.name)]
        self._stop_if_strict(faults)
        start, num_pending = time.perf_counter(), sum(len(group.entries) for group in pending)
        with tqdm(total=len(entries), desc="converting", unit="dialogue") as progress:
            progress.update(len(entries) - num_pending)
            for group, found in map_unordered(functools.partial(_convert, settings), pending, self.num_workers):
                self._stop_if_strict(found)
                progress.update(len(group.entries))
        summary, kinds = self._summarize(Path(output_dir), groups, faults)
        text = self._describe(summary, kinds, num_pending, time.perf_counter() - start)
        write_text(Path(output_dir) / RESULTS, text)
        return {**summary, **{f"num_{kind}": count for kind, count in kinds.items()}}

    def _groups(self, entries: list[tuple[str, Any]]) -> list[_Group]:
        starts = range(0, len(entries), self.examples_per_group)
        return [_Group(f"{start:09d}", start, entries[start : start + self.examples_per_group]) for start in starts]

    def _stop_if_strict(self, faults: Sequence[Fault]) -> None:
        if self.strict and faults:
            fault = faults[0]
            raise UserError(f"{self.index}, {fault.id}: {fault.problem} ({fault.kind}); fix it, or set strict=false")

    def _summarize(
        self, output_dir: Path, groups: list[_Group], faults: list[Fault]
    ) -> tuple[dict[str, float], dict[str, int]]:
        parts, faults = [], list(faults)
        for group in groups:
            done = json.loads(_done_file(output_dir / SHARDS, group.name).read_text(encoding="utf-8"))
            parts += [ShardIndex.load(output_dir / SHARDS / f"{shard}.npz") for shard in done["shards"]]
            faults += [Fault(**fault) for fault in done["faults"]]
        kinds = Counter(fault.kind for fault in faults)
        report = {"num_faults": len(faults), "kinds": dict(kinds), "faults": [asdict(fault) for fault in faults]}
        write_json(output_dir / REPORT, report)
        if not parts:
            raise UserError(
                f"{self.index}: every item has a fault; {output_dir / REPORT} says what is wrong with each: fix them"
            )
        index = ShardIndex.join(parts)
        index.save(output_dir / INDEX)
        summary = {
            "num_examples": len(index),
            "num_shards": len(index.shards),
            "num_faults": len(faults),
            "query_hours": float(index.query_s.sum()) / 3600,
            "num_speech_tokens": int(index.num_units.sum()),
        }
        return summary, dict(sorted(kinds.items()))

    def _describe(self, summary: dict[str, float], kinds: dict[str, int], num_entries: int, seconds: float) -> str:
        by_kind = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        rows = {
            "examples": f"{summary['num_examples']:,}",
            "hours of queries": f"{summary['query_hours']:.1f}",
            "speech tokens": f"{summary['num_speech_tokens']:,}",
            "shards": f"{summary['num_shards']}",
            "items left out": f"{summary['num_faults']}{f' ({by_kind})' if by_kind else ''}",
            "items converted in the last run": f"{num_entries:,} in {seconds:.0f} s",
            "items per second": f"{num_entries / seconds:.0f}",
            "processes": f"{self.num_workers}",
        }
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def _name(entries: list[Any]) -> tuple[list[tuple[str, Any]], list[Fault]]:
    """Return entries with their ids, each id once, and what is wrong with the others."""
    named: dict[str, Any] = {}
    faults = []
    for place, entry in enumerate(entries):
        try:
            name = parse_id({"id": entry.id} if isinstance(entry, RowPlace) else entry)
        except ItemError as error:
            faults.append(Fault(f"entry {place}", error.kind, str(error)))
            continue
        if name in named:
            faults.append(Fault(name, "duplicate_id", f"entry {place} has the id of an earlier one"))
        else:
            named[name] = entry
    return list(named.items()), faults


def _done_file(folder: Path, group: str) -> Path:
    return folder / f"{group}.json"


def _is_done(folder: Path, group: str) -> bool:
    """Tell whether a group was converted and none of its shards has been deleted since."""
    done = _done_file(folder, group)
    if not done.is_file():
        return False
    shards = json.loads(done.read_text(encoding="utf-8"))["shards"]
    return all((folder / f"{shard}{end}").is_file() for shard in shards for end in (".tar", ".npz"))


@functools.lru_cache(maxsize=1)
def _files(paths: tuple[Path, ...]) -> CorpusFiles:
    """Open the files once per process: the list of an archive's members may be long."""
    return open_files(paths)


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> Any:
    return AutoTokenizer.from_pretrained(path)


def _convert(settings: _Settings, group: _Group) -> list[Fault]:
    """Write the shards of a group, then the file that says it is done; return its faults."""
    tokenizer = None if settings.tokenizer is None else _tokenizer(settings.tokenizer)
    packer = Packer(_files(settings.files), settings.rules, tokenizer)
    faults: list[Fault] = []
    shards: list[str] = []
    with contextlib.ExitStack() as open_shard:
        writer: ShardWriter | None = None
        for place, (name, entry) in enumerate(group.entries):
            packed = packer(name, entry)
            if isinstance(packed, Fault):
                faults.append(packed)
                continue
            if writer is None:
                shards.append(f"{group.name}-{len(shards):02d}")
                writer = open_shard.enter_context(ShardWriter.create(settings.folder / f"{shards[-1]}.tar"))
            writer.write(f"{group.first + place:09d}", packed)
            if writer.num_bytes >= settings.max_shard_bytes:
                open_shard.close()
                writer = None
    write_json(
        _done_file(settings.folder, group.name), {"shards": shards, "faults": [asdict(fault) for fault in faults]}
    )
    return faults
