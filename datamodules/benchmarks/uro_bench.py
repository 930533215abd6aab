"""URO-Bench: a list in JSON lines and the audio that it names, for each set."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.benchmarks.query import (
    NO_AUDIO,
    NO_QUESTION,
    NO_REFERENCE,
    NO_RULE,
    SEVERAL_ROUNDS,
    AudioFile,
    Benchmark,
    BenchmarkQuery,
    Scoring,
)

LIST = "test.jsonl"
_OPEN, _SEMI_OPEN, _CLOSED, _REPEAT = Scoring.OPEN, Scoring.REFERENCE, Scoring.ALIAS, Scoring.REPEAT
SCORINGS = {
    **dict.fromkeys(("AlpacaEval", "CommonEval", "WildchatEval", "AlpacaEval-zh", "Claude-zh", "Wildchat-zh"), _OPEN),
    **dict.fromkeys(("StoralEval", "Summary", "TruthfulEval", "LCSTS-zh"), _SEMI_OPEN),
    **dict.fromkeys(("CodeSwitching-en", "CodeSwitching-zh"), _SEMI_OPEN),
    **dict.fromkeys(("GaokaoEval", "Gsm8kEval", "MLC", "MLC-zh", "OpenbookQA-zh", "MLCpro-en", "MLCpro-zh"), _CLOSED),
    **dict.fromkeys(("ClothoEval-en", "MuChoEval-en", "HSK5-zh", "APE-zh", "SQuAD-zh"), _CLOSED),
    **dict.fromkeys(("Repeat", "Repeat-zh"), _REPEAT),
}
NOT_JSON = "line is not JSON"
CHOICES = ("A", "B", "C", "D", "E")


class UroBench(Benchmark):
    """Reads ``<track>/<set>/test.jsonl``: ``source_wav`` beside it, ``source_text``, and ``target_text``.

    A target is a text or a list of texts, each of which is right. A closed question whose target is one letter is a
    choice. Sets that score how something is said, or need a prompt of their own, are counted as skipped.

    Args:
        folder: Holds the tracks, or is one; None reads nothing.
        sets: Names of sets; all that are there if None.
        max_per_set: Queries of each set, from the first on; all if None.

    Reference: arXiv 2502.17810; the data set card of Honggao/URO-Bench.
    """

    @property
    def expected(self) -> str:
        """See :class:`Benchmark`."""
        return f"expected <track>/<set>/{LIST} with <set> such as {', '.join(list(SCORINGS)[:4])}"

    def find_sets(self, folder: Path) -> dict[str, list[Path]]:
        """See :class:`Benchmark`."""
        lists = sorted([*folder.glob(f"*/{LIST}"), *folder.glob(f"*/*/{LIST}")])
        return {file.parent.name: [file] for file in lists}

    def read_set(self, name: str, files: list[Path]) -> Iterator[BenchmarkQuery | str]:
        """See :class:`Benchmark`."""
        (file,) = files
        with file.open("rb") as lines:
            for number, line in enumerate(one for one in lines if one.strip()):
                try:
                    item = json.loads(line)
                except (ValueError, RecursionError):
                    item = None
                yield self._query(name, number, item, file.parent) if isinstance(item, dict) else NOT_JSON

    def _query(self, name: str, number: int, item: dict[str, Any], folder: Path) -> BenchmarkQuery | str:
        if "dialogue" in item:
            return SEVERAL_ROUNDS
        scoring = SCORINGS.get(name)
        if scoring is None:
            return NO_RULE
        question, speech = str(item.get("source_text") or "").strip(), item.get("source_wav")
        # What is to be repeated is what is said, where the list names no target.
        target = item.get("target_text") or (question if scoring is Scoring.REPEAT else None)
        targets = target if isinstance(target, list) else [target]
        references = tuple(dict.fromkeys(text for one in targets if one is not None and (text := str(one).strip())))
        if not question:
            return NO_QUESTION
        if scoring is not Scoring.OPEN and not references:
            return NO_REFERENCE
        if not isinstance(speech, str) or not (folder / speech).is_file():
            return NO_AUDIO
        if scoring is Scoring.ALIAS and all(one.strip("().").upper() in CHOICES for one in references):
            scoring = Scoring.CHOICE
        references = () if scoring is Scoring.OPEN else references
        return BenchmarkQuery(name, number, question, references, scoring, AudioFile(folder / speech))
