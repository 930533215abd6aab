"""A job that writes what a frozen thinker says to each reply, so that talkers train without running it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from datamodules.batch import bits_of, collate
from datamodules.formats.atomic_files import remove_partial_files
from datamodules.formats.released_layout import ReleasedLayout
from datamodules.shards.shard_index import INDEX, SHARDS
from datamodules.shards.sharded_examples import ConvertedCorpus
from datamodules.shards.text_state_index import TEXT_STATES, StateShardWriter, TextStateIndex
from experiments.jobs.decoding.machine import find_device
from lightning_modules.adapters.lora import with_merged_adapters
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.stored_text_states import thinker_digest
from lightning_modules.thinker.thinker import Thinker

Replies = ReleasedLayout | ConvertedCorpus


@dataclass(frozen=True)
class _Group:
    """Examples of one shard: either all of them are kept when the job is killed, or none.

    Attributes:
        split: Where they come from.
        positions: Their places there, those with queries of like length next to each other.
        ids: Their names.
        path: Their shard.
    """

    split: str
    positions: list[int]
    ids: list[str]
    path: Path


class TextStateWriter:
    """Runs a thinker over queries and gold replies, and stores token ids and bfloat16 hidden states in shards.

    LoRA matrices in use are added to weights of float32 first, which is as good and faster.

    Shards that are already there are kept, so it may be killed at any time and run again. Shards of another thinker,
    or of other examples, are written again.

    `<set_name>/text_states/` holds `shards/*.bin` and `index.npz`; see :mod:`datamodules.shards.text_state_index`.

    Args:
        thinker: A trained thinker.
        splits: Corpora by name, with their queries; an example's id is its own in all of them.
        set_name: Folder of the set to write to; null writes to `text_states/` itself, for sharded corpora.
        batch_size: Queries run together, of similar length.
        bfloat16: Run under bfloat16 autocast.
        examples_per_group: Examples of a shard, and those that are run again, at most, after the job was killed.

    Raises:
        UserError: If a number is out of range, or a split does not read queries.
    """

    def __init__(
        self,
        thinker: Thinker,
        splits: dict[str, Replies],
        set_name: str | None = "spoken_examples",
        batch_size: int = 32,
        bfloat16: bool = True,
        examples_per_group: int = 2048,
    ) -> None:
        require_at_least(1, batch_size=batch_size, examples_per_group=examples_per_group)
        for name, examples in splits.items():
            if "query" not in examples.fields:
                raise UserError(f"splits.{name}: reads {list(examples.fields)}, but a thinker needs fields=[query]")
        self.device = find_device()
        self.thinker = thinker
        self.splits = splits
        self.set_name = set_name
        self.batch_size = batch_size
        self.bfloat16 = bfloat16
        self.num_dropped_turns = 0
        self.examples_per_group = examples_per_group

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Write the states of all splits.

        Args:
            output_dir: The run directory of this job.

        Returns:
            `<split>/num_replies` and `<split>/num_text_tokens`; of all splits, the bytes of ids and states
            (`num_bytes`) and how many bytes of files hold one of them (`bytes_on_disk_per_byte`), and
            `num_dropped_turns` if dialogues that were written now were too long for the context.

        Raises:
            FileNotFoundError: If an index or a query is missing.
            UserError: If a query or a reply is damaged, empty or too long, or two splits share an id.
        """
        folder = Path(output_dir) / (self.set_name or "") / TEXT_STATES
        shards = folder / SHARDS
        shards.mkdir(parents=True, exist_ok=True)
        remove_partial_files(shards)
        self._refuse_shared_ids()
        digest = thinker_digest(self.thinker)
        self.thinker = with_merged_adapters(self.thinker.eval().to(self.device))
        groups = [group for split in self.splits for group in self._groups(split, shards)]
        pending = [group for group in groups if not _is_done(group, digest)]
        total, num_pending = (sum(len(group.ids) for group in some) for some in (groups, pending))
        with tqdm(total=total, initial=total - num_pending, desc="text states", unit="reply") as progress:
            for group in pending:
                self._write(group, digest, progress)
        return self._summarize(groups, folder)

    def _refuse_shared_ids(self) -> None:
        owner: dict[str, str] = {}
        for split, examples in self.splits.items():
            for name in examples.ids:
                if owner.setdefault(str(name), split) != split:
                    raise UserError(
                        f"splits.{split}: the id {str(name)!r} occurs in {owner[str(name)]}, too; write the states of "
                        "these splits to folders of their own"
                    )

    def _groups(self, split: str, folder: Path) -> list[_Group]:
        """Cut a split into shards in the order of the corpus, and sort each by length, so that batches pad little."""
        sizes, ids = self.splits[split].sizes(), self.splits[split].ids
        groups = []
        for start in range(0, len(sizes), self.examples_per_group):
            own = sizes[start : start + self.examples_per_group]
            positions = (start + np.argsort(own, kind="stable")).tolist()
            names = [str(ids[position]) for position in positions]
            groups.append(_Group(split, positions, names, folder / f"{split}-{start:09d}.bin"))
        return groups

    def _write(self, group: _Group, digest: str, progress: tqdm) -> None:
        """Write the shard of a group."""
        with StateShardWriter.create(group.path, digest, self.thinker.hidden_size) as writer:
            for start in range(0, len(group.positions), self.batch_size):
                positions = group.positions[start : start + self.batch_size]
                self._write_batch(writer, self.splits[group.split], positions)
                progress.update(len(positions))

    def _write_batch(self, writer: StateShardWriter, examples: Replies, positions: list[int]) -> None:
        found = examples.read(positions)
        batch = collate(found).to(self.device).to_float()
        assert batch.query is not None and batch.query_lengths is not None
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = self.thinker.states(batch.query, batch.query_lengths, batch.reply_texts, batch.history)
        self.num_dropped_turns += output.num_dropped_turns
        hidden, token_ids = bits_of(output.hidden.cpu()), output.token_ids.cpu().numpy()
        for row, (example, count) in enumerate(zip(found, output.lengths.tolist(), strict=True)):
            writer.write(example.id, example.reply_text, token_ids[row, :count], hidden[row, :count])

    def _summarize(self, groups: list[_Group], folder: Path) -> dict[str, Any]:
        """Write the index of all shards, and remove what no index names."""
        parts = [TextStateIndex.load(group.path.with_suffix(".npz")) for group in groups]
        whole = TextStateIndex.join(parts)
        whole.save(folder / INDEX)
        named = {group.path for group in groups}
        for file in (folder / SHARDS).iterdir():
            if file.with_suffix(".bin") not in named:
                file.unlink()
        report: dict[str, Any] = {}
        for split in self.splits:
            own = [part for group, part in zip(groups, parts, strict=True) if group.split == split]
            num_tokens = sum(int(part.num_tokens.sum()) for part in own)
            report |= {f"{split}/num_replies": sum(map(len, own)), f"{split}/num_text_tokens": num_tokens}
        on_disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        report |= {"num_dropped_turns": self.num_dropped_turns} if self.num_dropped_turns else {}
        return {**report, "num_bytes": whole.num_bytes, "bytes_on_disk_per_byte": on_disk / whole.num_bytes}


def _is_done(group: _Group, digest: str) -> bool:
    """Tell whether this thinker wrote the shard of a group, of these very examples."""
    index_file = group.path.with_suffix(".npz")
    if not group.path.is_file() or not index_file.is_file():
        return False
    index = TextStateIndex.load(index_file)
    is_whole = group.path.stat().st_size == index.num_bytes
    return str(index.thinker) == digest and index.ids.tolist() == group.ids and is_whole
