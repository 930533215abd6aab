"""Scores of replies, summed up by set and laid out as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datamodules.benchmarks.query import BenchmarkQuery, Scoring
from lightning_modules.evaluation.answer_matching import makes_choice, matches_alias, repeated_share
from lightning_modules.evaluation.bootstrap import Estimate, estimate_rate


@dataclass
class ScoredReply:
    """A reply and what it is worth.

    Attributes:
        benchmark: Name of the benchmark.
        query: What was asked.
        reply: What the thinker wrote.
        is_cut: It wrote as many tokens as it may.
        matched: Score of a closed answer, 0 to 1; None for an open one.
        made_choice: A choice could be told; True where there is none to make.
        verdict: What the judge wrote; None if it was not asked.
        judged: What that counts; None if it was not asked or could not be read.
    """

    benchmark: str
    query: BenchmarkQuery
    reply: str
    is_cut: bool
    matched: float | None = None
    made_choice: bool = True
    verdict: str | None = None
    judged: float | None = None

    @classmethod
    def of(cls, benchmark: str, query: BenchmarkQuery, reply: str, is_cut: bool) -> "ScoredReply":
        """Score a reply as far as no judge is needed."""
        scored = cls(benchmark, query, reply, is_cut)
        if query.scoring is Scoring.ALIAS:
            scored.matched = float(matches_alias(reply, query.references))
        elif query.scoring is Scoring.CHOICE:
            is_right = makes_choice(reply, query.references)
            scored.matched, scored.made_choice = float(bool(is_right)), is_right is not None
        elif query.scoring is Scoring.REPEAT:
            scored.matched = repeated_share(reply, query.references)
        return scored

    @property
    def set_name(self) -> str:
        """Benchmark and set."""
        return f"{self.benchmark}/{self.query.set_name}"

    def as_record(self) -> dict[str, Any]:
        """Give what a line of ``replies.jsonl`` holds."""
        query = self.query
        return {
            "set": self.set_name,
            "number": query.number,
            "scoring": query.scoring.value,
            "question": query.question,
            "references": list(query.references),
            "reply": self.reply,
            "is_cut": self.is_cut,
            "matched": self.matched,
            "made_choice": self.made_choice,
            "verdict": self.verdict,
            "judged": self.judged,
        }


@dataclass
class SetScores:
    """What a set came to.

    Attributes:
        name: Benchmark and set.
        scoring: How it is scored.
        num_queries: Queries that were answered.
        matched: Mean score of closed answers, 0 to 1, with its interval over queries.
        judged: Mean of the judge's scores, with its interval.
        num_judged: Replies with a verdict that could be read, empty ones included.
        num_unreadable: Verdicts that could not be read; they are in no mean.
        num_empty: Empty replies; they have the lowest score, and the judge is not asked.
        num_cut: Replies that were cut off.
        num_without_choice: Replies that make no choice; they count as wrong.
        skipped: Items of the set that were not asked, by reason.
    """

    name: str
    scoring: str
    num_queries: int
    matched: Estimate | None
    judged: Estimate | None
    num_judged: int
    num_unreadable: int
    num_empty: int
    num_cut: int
    num_without_choice: int
    skipped: dict[str, int] = field(default_factory=dict)


def sum_up(replies: Sequence[ScoredReply], skipped: dict[tuple[str, str], int]) -> list[SetScores]:
    """Sum scores up by set.

    Args:
        replies: Scored replies.
        skipped: Items that were not asked, by set (with its benchmark) and reason.

    Returns:
        A set after the other, in order of first appearance; sets that were skipped as a whole come last.
    """
    groups: dict[tuple[str, str], list[ScoredReply]] = {}
    for one in replies:
        groups.setdefault((one.set_name, one.query.scoring.value), []).append(one)
    named = {name for name, _ in groups}
    sets = [_sum_up_one(name, scoring, group) for (name, scoring), group in groups.items()]
    sets += [
        SetScores(name, "-", 0, None, None, 0, 0, 0, 0, 0)
        for name in dict.fromkeys(n for n, _ in skipped)
        if name not in named
    ]
    for (name, reason), count in skipped.items():
        next(one for one in sets if one.name == name).skipped[reason] = count
    return sets


def _sum_up_one(name: str, scoring: str, group: list[ScoredReply]) -> SetScores:
    judged = [one.judged for one in group if one.judged is not None]
    return SetScores(
        name,
        scoring,
        len(group),
        _mean([one.matched for one in group if one.matched is not None]),
        _mean(judged),
        len(judged),
        sum(one.verdict is not None and one.judged is None for one in group),
        sum(not one.reply.strip() for one in group),
        sum(one.is_cut for one in group),
        sum(not one.made_choice for one in group),
    )


def _mean(scores: list[float]) -> Estimate | None:
    return estimate_rate(np.array(scores), np.ones(len(scores))) if scores else None


def lay_out(sets: Sequence[SetScores]) -> str:
    """Lay the scores out as a Markdown table, with what was skipped below it."""
    columns = (
        "set",
        "scored by",
        "queries",
        "matched % (95 %)",
        "judge (95 %)",
        "judged",
        "unreadable",
        "empty",
        "cut",
        "no choice",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for one in sets:
        if one.num_queries:
            judged = one.judged
            cells = (
                one.name,
                one.scoring,
                one.num_queries,
                "-" if one.matched is None else one.matched.in_percent(),
                "-" if judged is None else f"{judged.value:.2f} ({judged.low:.2f} to {judged.high:.2f})",
                *(one.num_judged, one.num_unreadable, one.num_empty, one.num_cut, one.num_without_choice),
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    skipped = [f"{count} of {one.name}: {reason}" for one in sets for reason, count in one.skipped.items()]
    return "\n".join([*lines, "", "skipped: " + ("; ".join(skipped) or "nothing")])
