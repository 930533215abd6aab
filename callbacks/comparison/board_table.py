"""The page HParams of TensorBoard: a line for each decoding of each comparison, with word errors and speed."""

import re
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from callbacks.comparison.rows import ComparisonRow

FOLDER = "table"


def write_table(rows: Sequence[ComparisonRow], folder: Path, comparison: str) -> None:
    """Write a TensorBoard run for each decoding, which the page shows as a line.

    Args:
        rows: The comparison; its references, which no talker spoke, are left out.
        folder: Gets `table/<decoding>/`.
        comparison: What tells these lines from those of other comparisons.
    """
    for row in rows:
        if row.talker is None:
            continue
        settings: dict[str, str | float] = {
            "comparison": comparison,
            "decoding": row.name,
            "talker": row.talker,
            "steps_per_block": float(row.steps or 0),
            "rule": row.rule or "-",
        }
        with SummaryWriter(folder / FOLDER / re.sub(r"[^\w.]+", "_", row.name)) as writer:
            writer.add_hparams(settings, _metrics(row), run_name=".", global_step=0)


def _metrics(row: ComparisonRow) -> dict[str, float]:
    """Give the columns of a line; their tags are no curve's, so that they stand in no chart."""
    percent = {"wer": row.wer_micro, "gold_wer": row.wer_gold_micro, "text_exact": row.text_exact_match}
    plain = {
        "tokens_per_s": row.tokens_per_s,
        "rtf": row.rtf,
        "first_chunk_ms": row.first_chunk_ms.get("total"),
        "passes_per_block": row.forwards_per_block,
    }
    found = {f"{name}_percent": None if value is None else 100 * value for name, value in percent.items()} | plain
    return {f"table/{name}": float(value) for name, value in found.items() if value is not None}
