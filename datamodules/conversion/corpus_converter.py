"""A job that writes a corpus as tar shards with one index, from whatever it comes in."""

import functools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoTokenizer

from datamodules.conversion.packing import Fault, Packer, PackingRules
from datamodules.formats.atomic_files import write_json
from datamodules.formats.corpus_sources import CorpusFiles, open_files, read_entries
from datamodules.shards.shard_index import INDEX, SHARDS, ShardIndex, ShardWriter
from datamodules.workers import map_unordered
from lightning_modules.errors import UserError

REPORT, RESULTS = "report.json", "results.md"


@dataclass(frozen=True)
class _Group:
    """Examples that one worker converts at a stretch: the unit that is done or not when a run is killed."""

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
        tokenizer: Folder or name of the text tokenizer that counts the text tokens of replies; not counted if left out.
        num_workers: Processes; 0 works in this one.
        examples_per_group: Examples that are lost at most by each worker when the job is killed.
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
        if num_workers < 0 or examples_per_group < 1 or max_shard_mb <= 0:
            raise UserError(
                f"num_workers={num_workers}, examples_per_group={examples_per_group}, max_shard_mb={max_shard_mb}: the "
                "first must not be negative, the others must be positive"
            )
        self.index, self.files = Path(index), tuple(Path(path) for path in files)
        self.rules, self.tokenizer, self.strict = rules or PackingRules(), tokenizer, strict
        self.num_workers, self.examples_per_group, self.max_shard_mb = num_workers, examples_per_group, max_shard_mb

    def run(self, output_dir: Path) -> dict[str, float]:
        """Writes `shards/*.tar`, `index.npz`, `report.json` and a table, `results.md`.

        Args:
            output_dir: The run directory.

        Returns:
            Numbers of examples, shards and faults (also by kind), hours of queries and speech tokens.

        Raises:
            FileNotFoundError: If the list, a folder or an archive is missing.
            UserError: If one of them cannot be read, nothing good is left, or, if strict, at the first fault.
        """
        folder = Path(output_dir) / SHARDS
        folder.mkdir(parents=True, exist_ok=True)
        entries, faults = _name(read_entries(self.index))
        open_files(self.files)  # complains here, not in a worker
        groups = self._groups(entries)
        settings = _Settings(folder, self.files, self.rules, self.tokenizer, round(self.max_shard_mb * 1e6))
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
        (Path(output_dir) / RESULTS).write_text(text, encoding="utf-8")
        return {**summary, **{f"num_{kind}": count for kind, count in kinds.items()}}

    def _groups(self, entries: list[tuple[str, Any]]) -> list[_Group]:
        starts = range(0, len(entries), self.examples_per_group)
        return [_Group(f"{start:09d}", start, entries[start : start + self.examples_per_group]) for start in starts]

    def _stop_if_strict(self, faults: Sequence[Fault]) -> None:
        if self.strict and faults:
            fault = faults[0]
            raise UserError(f"{self.index}, {fault.id}: {fault.problem} ({fault.kind}); mend it, or set strict=false")

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
                f"{self.index}: none of its items is good; {output_dir / REPORT} says what is wrong with each"
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
            "items a second": f"{num_entries / seconds:.0f}",
            "processes": f"{self.num_workers}",
        }
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def _name(entries: list[Any]) -> tuple[list[tuple[str, Any]], list[Fault]]:
    """Gives entries with their ids, each id once, and what is wrong with the others."""
    named: dict[str, Any] = {}
    faults = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            problem = f"an item must be an object with an 'id'; found {json.dumps(entry, ensure_ascii=False)[:80]}"
            faults.append(Fault(f"entry {place}", "layout", problem))
        elif str(entry["id"]) in named:
            faults.append(Fault(str(entry["id"]), "duplicate_id", f"entry {place} has the id of an earlier one"))
        else:
            named[str(entry["id"])] = entry
    return list(named.items()), faults


def _done_file(folder: Path, group: str) -> Path:
    return folder / f"{group}.json"


def _is_done(folder: Path, group: str) -> bool:
    """Whether a group was converted, and none of its shards has been deleted since."""
    done = _done_file(folder, group)
    if not done.is_file():
        return False
    shards = json.loads(done.read_text(encoding="utf-8"))["shards"]
    return all((folder / f"{shard}{end}").is_file() for shard in shards for end in (".tar", ".npz"))


@functools.lru_cache(maxsize=1)
def _files(paths: tuple[Path, ...]) -> CorpusFiles:
    """Opens the files once a process: the list of an archive's members may be long."""
    return open_files(paths)


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> Any:
    return AutoTokenizer.from_pretrained(path)


def _convert(settings: _Settings, group: _Group) -> list[Fault]:
    """Writes the shards of a group, then says that it is done; gives its faults."""
    count = None
    if settings.tokenizer is not None:
        tokenizer = _tokenizer(settings.tokenizer)
        count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    packer = Packer(_files(settings.files), settings.rules, count)
    faults, shards = [], []
    writer: ShardWriter | None = None
    for place, (name, entry) in enumerate(group.entries):
        packed = packer(name, entry)
        if isinstance(packed, Fault):
            faults.append(packed)
            continue
        if writer is None:
            shards.append(f"{group.name}-{len(shards):02d}")
            writer = ShardWriter(settings.folder / f"{shards[-1]}.tar")
        writer.write(f"{group.first + place:09d}", packed)
        if writer.num_bytes >= settings.max_shard_bytes:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    write_json(
        _done_file(settings.folder, group.name), {"shards": shards, "faults": [asdict(fault) for fault in faults]}
    )
    return faults
