"""VoiceBench: Parquet tables of audio, prompts and references, a folder for each set."""

import re
from collections.abc import Iterator
from pathlib import Path

from datamodules.benchmarks.query import (
    NO_QUESTION,
    NO_REFERENCE,
    NO_RULE,
    SEVERAL_ROUNDS,
    AudioInTable,
    Benchmark,
    BenchmarkQuery,
    Scoring,
    require_columns,
)
from datamodules.formats.parquet_tables import RowPlace, TableRows, open_table, read_group

SCORINGS = {
    "alpacaeval": Scoring.OPEN,
    "alpacaeval_full": Scoring.OPEN,
    "alpacaeval_speaker": Scoring.OPEN,
    "commoneval": Scoring.OPEN,
    "wildvoice": Scoring.OPEN,
    "sd-qa": Scoring.ALIAS,
    "openbookqa": Scoring.CHOICE,
    "mmsu": Scoring.CHOICE,
    "bbh": Scoring.CHOICE,
}
UNSCORED = {
    "ifeval": "needs the rules of IFEval",
    "advbench": "refusals are not scored",
    "mtbench": SEVERAL_ROUNDS,
}
SHARD = re.compile(r"-\d{5}-of-\d{5}$")


class VoiceBench(Benchmark):
    """Reads ``<set>/<split>-00000-of-00001.parquet`` with the columns ``audio``, ``prompt`` and ``reference``.

    A set of one split has the folder's name, any other the split's behind it, such as "sd-qa/aus". Sets without a rule
    here are counted as skipped.

    Args:
        folder: Holds the folders of sets; None reads nothing.
        sets: Names of sets, with their splits; all that are there if None.
        max_per_set: Queries of each set, from the first on; all if None.

    Reference: arXiv 2410.17196; the data set card of hlt-lab/voicebench.
    """

    @property
    def expected(self) -> str:
        """See :class:`Benchmark`."""
        return f"expected <set>/<split>-00000-of-00001.parquet with <set> such as {', '.join(SCORINGS)}"

    def find_sets(self, folder: Path) -> dict[str, list[Path]]:
        """See :class:`Benchmark`."""
        found: dict[str, list[Path]] = {}
        for table in sorted(folder.glob("*/*.parquet")):
            split = SHARD.sub("", table.stem)
            name = table.parent.name if split == "test" else f"{table.parent.name}/{split}"
            found.setdefault(name, []).append(table)
        return found

    def read_set(self, name: str, files: list[Path]) -> Iterator[BenchmarkQuery | str]:
        """See :class:`Benchmark`."""
        kind, rows, number = name.split("/")[0], TableRows(), 0
        scoring = SCORINGS.get(kind)
        for file in files:
            for prompt, reference, place in self._texts(file, scoring):
                references = (reference,) if reference else ()
                if scoring is None:
                    yield UNSCORED.get(kind, NO_RULE)
                elif not prompt:
                    yield NO_QUESTION
                elif not references and not scoring.is_open:
                    yield NO_REFERENCE
                else:
                    audio = AudioInTable(rows, place)
                    yield BenchmarkQuery(name, number, prompt, () if scoring.is_open else references, scoring, audio)
                number += 1

    def _texts(self, file: Path, scoring: Scoring | None) -> Iterator[tuple[str, str, RowPlace]]:
        """Give prompt, reference and place of each row, without its audio."""
        table = open_table(file)
        names = table.schema_arrow.names
        needed = [] if scoring is None else ["audio", "prompt", *([] if scoring.is_open else ["reference"])]
        require_columns(file, names, needed)
        wanted, row = [column for column in ("prompt", "reference") if column in names], 0
        for group in range(table.num_row_groups):
            num_rows = table.metadata.row_group(group).num_rows
            texts = read_group(table, file, group, wanted) if wanted else [{}] * num_rows
            for in_group, values in enumerate(texts):
                prompt, reference = ((values.get(key) or "").strip() for key in ("prompt", "reference"))
                yield prompt, reference, RowPlace(row, str(file), group, in_group)
                row += 1
