"""A job that writes what a frozen thinker says to each reply, so that talkers train without running it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from datamodules.batch import collate, text_states_folder
from datamodules.formats.atomic_files import remove_partial_files, write_array
from datamodules.formats.released_layout import ReleasedLayout
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.thinker.thinker import Thinker


class TextStateWriter:
    """Runs a thinker over queries and gold replies.

    States that are already there are kept, so it may be killed and run again.

    A file `<set_name>/text_states/<id>.npy` holds ``(N, hidden_size + embedding_size) float32``: for each text token of
    the reply the hidden state that predicted it, then its input embedding.

    Args:
        thinker: A trained thinker.
        splits: Corpora by name, with their queries.
        set_name: Folder of the set to write to.
        batch_size: Queries run together, of similar length.
        bfloat16: Run under bfloat16 autocast.

    Raises:
        UserError: If the batch size is out of range, or a split does not read queries.
    """

    def __init__(
        self,
        thinker: Thinker,
        splits: dict[str, ReleasedLayout],
        set_name: str = "spoken_examples",
        batch_size: int = 32,
        bfloat16: bool = True,
    ) -> None:
        require_at_least(1, batch_size=batch_size)
        for name, examples in splits.items():
            if "query" not in examples.fields:
                raise UserError(f"splits.{name}: reads {list(examples.fields)}, but a thinker needs fields=[query]")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.thinker = thinker
        self.splits = splits
        self.set_name = set_name
        self.batch_size = batch_size
        self.bfloat16 = bfloat16
        self.num_dropped_turns = 0

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Write the states of all splits.

        Args:
            output_dir: The run directory of this job.

        Returns:
            `<split>/num_replies` and `<split>/num_text_tokens`, and `num_dropped_turns` if dialogues that were written
            now were too long for the context.

        Raises:
            FileNotFoundError: If an index or a query is missing.
            UserError: If a query or a reply is damaged, empty or too long.
        """
        folder = text_states_folder(Path(output_dir), self.set_name)
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        self.thinker.eval().to(self.device)
        report: dict[str, Any] = {}
        for split, examples in self.splits.items():
            order = np.argsort(examples.sizes(), kind="stable").tolist()
            num_tokens = 0
            with tqdm(total=len(order), desc=f"text states of {split}", unit="reply") as progress:
                for start in range(0, len(order), self.batch_size):
                    num_tokens += self._write(folder, examples, order[start : start + self.batch_size])
                    progress.update(min(self.batch_size, len(order) - start))
            report |= {f"{split}/num_replies": len(order), f"{split}/num_text_tokens": num_tokens}
        return report | ({"num_dropped_turns": self.num_dropped_turns} if self.num_dropped_turns else {})

    def _write(self, folder: Path, examples: ReleasedLayout, indices: list[int]) -> int:
        """Write a batch unless all of it is there; return its number of text tokens."""
        paths = [folder / f"{examples.items[index].id}.npy" for index in indices]
        if all(path.is_file() for path in paths):
            return sum(len(np.load(path, mmap_mode="r")) for path in paths)
        batch = collate([examples[index] for index in indices]).to(self.device)
        assert batch.query is not None and batch.query_lengths is not None
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = self.thinker(batch.query, batch.query_lengths, batch.reply_texts, history=batch.history)
        self.num_dropped_turns += output.num_dropped_turns
        states = torch.cat([output.hidden.float(), output.embedding.float()], dim=-1).cpu().numpy()
        for path, row, length in zip(paths, states, output.lengths.tolist(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)  # an id may hold a slash
            write_array(path, row[:length])
        return int(output.lengths.sum())
