"""OpenAudioBench: a CSV table and a folder of audio for each set."""

import ast
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datamodules.benchmarks.query import (
    NO_AUDIO,
    NO_QUESTION,
    NO_REFERENCE,
    AudioFile,
    Benchmark,
    BenchmarkQuery,
    Scoring,
    require_columns,
)
from lightning_modules.errors import UserError

ROOT = "eval_datas"


@dataclass(frozen=True)
class _Columns:
    """Which columns of a set's table hold question and answers, and what stands between several answers."""

    question: str
    answers: str
    scoring: Scoring
    separator: str | None = None


SETS = {
    "alpaca_eval": _Columns("instruction", "output", Scoring.OPEN),
    "llama_questions": _Columns("Questions", "Answer", Scoring.ALIAS),
    "reasoning_qa": _Columns("Prompt", "参考答案", Scoring.REFERENCE),
    "trivia_qa": _Columns("question", "answer_normalized_aliases", Scoring.ALIAS, r"[;,]"),
    "web_questions": _Columns("question", "answers", Scoring.ALIAS, ";"),
}


class OpenAudioBench(Benchmark):
    """Reads ``eval_datas/<set>/<set>.csv`` with ``eval_datas/<set>/audios/<audio_filename>``.

    Several answers in a cell are a list as Python or JSON writes it, or stand between semicolons; in trivia_qa, whose
    aliases have no punctuation, commas do, too.

    Args:
        folder: Holds ``eval_datas``, or is that folder; None reads nothing.
        sets: Of alpaca_eval, llama_questions, reasoning_qa, trivia_qa and web_questions; all that are there if None.
        max_per_set: Queries of each set, from the first on; all if None.

    Reference: the data set card of baichuan-inc/OpenAudioBench.
    """

    @property
    def expected(self) -> str:
        """See :class:`Benchmark`."""
        return f"expected {ROOT}/<set>/<set>.csv with <set> one of {', '.join(SETS)}"

    def find_sets(self, folder: Path) -> dict[str, list[Path]]:
        """See :class:`Benchmark`."""
        root = folder / ROOT if (folder / ROOT).is_dir() else folder
        tables = {name: root / name / f"{name}.csv" for name in SETS}
        return {name: [table] for name, table in tables.items() if table.is_file()}

    def read_set(self, name: str, files: list[Path]) -> Iterator[BenchmarkQuery | str]:
        """See :class:`Benchmark`."""
        columns, (table,) = SETS[name], files
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            answers = [] if columns.scoring is Scoring.OPEN else [columns.answers]
            require_columns(table, reader.fieldnames or [], ["audio_filename", columns.question, *answers])
            try:
                rows = list(reader)
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{table}: not a readable CSV table ({error}); fetch it again") from error
        for number, row in enumerate(rows):
            yield self._query(name, number, row, table.parent / "audios")

    def _query(self, name: str, number: int, row: dict[str, str], audios: Path) -> BenchmarkQuery | str:
        columns = SETS[name]
        question, file = (row[columns.question] or "").strip(), audios / (row["audio_filename"] or "").strip()
        references: tuple[str, ...] = ()
        if columns.scoring is not Scoring.OPEN:
            references = split_answers(row[columns.answers] or "", columns.separator)
            if not references:
                return NO_REFERENCE
        if not question:
            return NO_QUESTION
        if not file.is_file():
            return NO_AUDIO
        return BenchmarkQuery(name, number, question, references, columns.scoring, AudioFile(file))


def split_answers(cell: str, separator: str | None) -> tuple[str, ...]:
    """Give the answers of a cell, without empty and equal ones.

    Args:
        cell: A list as Python or JSON writes it, or text.
        separator: Regular expression for what stands between answers; None for one answer.

    Returns:
        The answers in order.
    """
    text = cell.strip()
    answers: list[str] | None = None
    if text.startswith("[") and text.endswith("]"):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found = None  # text that happens to stand in brackets
        answers = [str(one) for one in found] if isinstance(found, list) else None
    if answers is None:
        answers = [text] if separator is None else re.split(separator, text)
    return tuple(dict.fromkeys(stripped for one in answers if (stripped := one.strip())))
