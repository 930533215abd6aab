"""Measures how well a thinker hears queries that sound unlike those of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from audiomentations.core.transforms_interface import BaseWaveformTransform
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from datamodules.batch import SAMPLE_RATE_HZ, SpokenExample
from datamodules.formats.atomic_files import write_json, write_text
from datamodules.formats.released_layout import ReleasedLayout
from datamodules.query_augmentation import QueryAugmentation
from datamodules.synthetic.espeak import EspeakSynthesizer, Voice
from experiments.engine.artifacts import load_trained
from experiments.jobs.speaking.queries import prepared_query
from lightning_modules.errors import UserError
from lightning_modules.evaluation.bootstrap import Estimate, estimate_difference, estimate_rate
from lightning_modules.evaluation.word_error_rate import count_word_errors
from lightning_modules.number_checks import require_at_least
from lightning_modules.thinker.thinker import Thinker

AS_RECORDED = "as recorded"


@dataclass(frozen=True)
class HearingCondition:
    """What is done to the queries before they are heard.

    Attributes:
        voices: Who speaks the queries again, in turn; the recorded ones are taken if there is none.
        transforms: What then happens to the sound, of the library `audiomentations`.
    """

    voices: Sequence[Voice] = ()
    transforms: Sequence[BaseWaveformTransform] = ()


@dataclass(frozen=True)
class HearingRow:
    """How well queries were heard in one condition.

    Attributes:
        name: Of the condition.
        exact: Share of queries to which the thinker writes the gold reply, token by token.
        lost: How much less that is than as recorded, on the same queries.
        wer: Word errors of the adaptor's transcript of the query; None if it was not asked for.
    """

    name: str
    exact: Estimate
    lost: Estimate
    wer: Estimate | None


class HearingTrial:
    """A job that lets a thinker answer the same queries under several conditions.

    Writes ``results.md``, ``summary.txt``, ``results.json`` and, in ``audio/``, the first query in each condition.

    Args:
        run: The run of a thinker, or any run that holds one.
        corpus: A corpus with queries and their transcripts.
        conditions: What is done to the queries, by name; as recorded they are always heard, too.
        splits: Whose queries.
        set_name: The folder of the set inside the corpus.
        max_examples: Uses only the first ones of each split.
        batch_size: Queries at a time.
        prepare: Cut silence off each query and bring it to the level of the corpora first, as `speak` does with a file
            and the live page with its microphone.
        transcribe: Also count the word errors of what the adaptor heard; False for a thinker that never learned to.
        seed: Of what the transforms draw.

    Raises:
        UserError: If a number is out of range, there is no split, or a condition changes nothing.
    """

    def __init__(
        self,
        run: Path,
        corpus: Path,
        conditions: Mapping[str, HearingCondition | None],
        splits: Sequence[str] = ("test",),
        set_name: str = "spoken_examples",
        max_examples: int | None = None,
        batch_size: int = 25,
        transcribe: bool = True,
        prepare: bool = False,
        seed: int = 0,
    ) -> None:
        require_at_least(1, max_examples=max_examples, batch_size=batch_size, num_splits=len(splits))
        require_at_least(0, seed=seed)
        present = {name: one for name, one in conditions.items() if one is not None}
        for name, condition in present.items():
            if not condition.voices and not condition.transforms:
                raise UserError(f"conditions.{name} changes nothing; give it voices or transforms")
        self.from_run, self.corpus, self.set_name = Path(run), Path(corpus), set_name
        self.conditions = {AS_RECORDED: HearingCondition(), **present}
        self.splits, self.max_examples, self.batch_size = list(splits), max_examples, batch_size
        self.transcribe, self.prepare, self.seed = transcribe, prepare, seed

    def run(self, output_dir: Path) -> dict[str, float]:
        """Hear all queries in every condition.

        Args:
            output_dir: The run directory.

        Returns:
            Shares by condition: ``<condition>/exact``, ``<condition>/lost`` and ``<condition>/wer``.

        Raises:
            FileNotFoundError: If the run or the corpus is missing.
            UserError: If the run holds no thinker, or the corpus no transcripts.
        """
        folder = Path(output_dir)
        thinker = load_trained(self.from_run, "thinker")
        examples = self._examples()
        rows: list[HearingRow] = []
        first: np.ndarray | None = None
        with tqdm(total=len(self.conditions) * len(examples), desc="hearing", unit="query") as progress:
            for name, condition in self.conditions.items():
                queries = self._queries(condition, examples)
                _write_example(folder / "audio", name, queries[0])
                misses, errors, words = self._hear(thinker, examples, queries, progress)
                first = misses if first is None else first
                ones = np.ones_like(misses)
                lost = estimate_difference(first, ones, misses, ones)
                wer = estimate_rate(errors, words) if self.transcribe else None
                rows.append(HearingRow(name, estimate_rate(1 - misses, ones), lost, wer))
        table = _table(rows)
        where = f"{len(examples)} queries ({', '.join(self.splits)}) of {self.corpus}, heard by {self.from_run}"
        write_text(folder / "results.md", f"{table}\n\n{where}\n")
        write_text(folder / "summary.txt", f"{table}\n{where}\nNo human speech is among them.\n")
        figures = {
            f"{row.name}/{key}": value.value
            for row in rows
            for key, value in (("exact", row.exact), ("lost", row.lost), ("wer", row.wer))
            if value is not None
        }
        write_json(folder / "results.json", figures)
        return figures

    def _examples(self) -> list[SpokenExample]:
        layouts = [
            ReleasedLayout(
                self.corpus / self.set_name / f"{split}.json",
                self.corpus,
                fields=("query", "transcript"),
                max_examples=self.max_examples,
            ).load()
            for split in self.splits
        ]
        return [layout[position] for layout in layouts for position in range(len(layout))]

    def _queries(self, condition: HearingCondition, examples: Sequence[SpokenExample]) -> list[Tensor]:
        """Give the queries of a condition, each ``(S,) float32``; a function of seed and number of the example."""
        queries = [example.query for example in examples if example.query is not None]
        if condition.voices:
            synthesizer = EspeakSynthesizer()
            synthesizer.reset()
            queries = [
                torch.from_numpy(
                    synthesizer.synthesize(str(example.transcript), condition.voices[i % len(condition.voices)])
                )
                for i, example in enumerate(examples)
            ]
        if condition.transforms:
            change = QueryAugmentation(condition.transforms, self.seed)
            queries = [change(query, 0, number) for number, query in enumerate(queries)]
        if self.prepare:
            queries = [torch.from_numpy(prepared_query(query.numpy())) for query in queries]
        return queries

    @torch.no_grad()
    def _hear(
        self, thinker: Thinker, examples: Sequence[SpokenExample], queries: Sequence[Tensor], progress: tqdm
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give whether each reply was missed, and word errors and words of each transcript, each ``(N,) float64``."""
        exact: list[bool] = []
        pairs: list[tuple[str, str]] = []
        for rows in _batches(len(examples), self.batch_size):
            lengths = torch.tensor([len(queries[row]) for row in rows])
            query = pad_sequence([queries[row] for row in rows], batch_first=True)
            exact += thinker(query, lengths, [examples[row].reply_text for row in rows]).is_exact.tolist()
            if self.transcribe:
                heard = thinker.transcribe(query, lengths)
                pairs += [(str(examples[row].transcript), one) for row, one in zip(rows, heard, strict=True)]
            progress.update(len(rows))
        errors, words = count_word_errors(pairs) if pairs else (np.zeros(0), np.zeros(0))
        return 1.0 - np.array(exact, dtype=np.float64), errors, words


def _batches(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _write_example(folder: Path, name: str, query: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{name.replace(' ', '_')}.wav", query.clamp(-1, 1).numpy(), SAMPLE_RATE_HZ)


def _table(rows: Sequence[HearingRow]) -> str:
    lines = ["| queries | text exact % (95 %) | points lost (95 %) | WER % of the query (95 %) |", "|---|---|---|---|"]
    for row in rows:
        lost = "-" if row.name == AS_RECORDED else row.lost.in_percent()
        wer = row.wer.in_percent() if row.wer is not None else "-"
        lines.append(f"| {row.name} | {row.exact.in_percent()} | {lost} | {wer} |")
    return "\n".join(lines)
