"""How many parameters of a module train, part by part."""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.engine import ranks
from experiments.engine.runs import Run, write_json


def count_parameters(module: nn.Module) -> dict[str, dict[str, int]]:
    """Count the parameters of each part of a module, those of named talkers apart.

    Returns:
        `trainable` and `all` by the part's name; a weight that parts share counts where it comes first.
    """
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in module.named_parameters():
        first, _, rest = name.partition(".")
        part = f"{first}.{rest.partition('.')[0]}" if first in ("talkers", "thinker") else first
        count = counts.setdefault(part, {"trainable": 0, "all": 0})
        count["all"] += parameter.numel()
        count["trainable"] += parameter.numel() * parameter.requires_grad
    return counts


def report_parameters(name: str, module: nn.Module, run: Run) -> None:
    """Print in one line what trains, and write the counts to the run directory."""
    if not ranks.is_first():
        return
    counts: dict[str, Any] = count_parameters(module)
    write_json(run.directory / "parameters.json", counts)
    parts = [f"{part} {one['trainable']:,}" for part, one in counts.items() if one["trainable"]]
    trainable, total = (sum(one[key] for one in counts.values()) for key in ("trainable", "all"))
    print(f"{name}: {trainable:,} of {total:,} parameters train ({', '.join(parts)})", flush=True)
