"""Lays the comparisons of several runs out on one page: seeds as spread, experiments side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from callbacks.comparison.page.page import MAX_BYTES, write_page
from datamodules.formats.atomic_files import write_text
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_positive


class ComparisonPage:
    """Writes one page of the comparisons that several runs ended with.

    Runs that differ in their seeds alone are one experiment: the page shows means and the spread over its seeds. Other
    runs stand side by side, with what is equal and what differs in how they were made.

    Args:
        runs: Directories of finished stages that compared.
        max_mb: Size of the page; dialogues that do not fit are left out, and the page says how many.

    Raises:
        UserError: If there is no run, or the size is not positive.
    """

    def __init__(self, runs: Sequence[str], max_mb: float = MAX_BYTES / 1e6) -> None:
        if not runs:
            raise UserError("no runs are given; say where finished comparisons are: runs=[PATH, PATH]")
        require_positive(max_mb=max_mb)
        self.runs, self.max_mb = [Path(run) for run in runs], max_mb

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Write `comparison.html`.

        Args:
            output_dir: Gets the page.

        Returns:
            Number of runs, and size of the page.
        """
        output_dir.mkdir(parents=True, exist_ok=True)
        page = write_page(self.runs, output_dir / "comparison.html", round(1e6 * self.max_mb))
        write_text(output_dir / "summary.txt", f"to listen and look, open {page} in a browser\n")
        return {"num_runs": len(self.runs), "page_mb": page.stat().st_size / 1e6}
