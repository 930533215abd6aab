"""What a judge of open answers is asked, word for word, and how its verdict is read."""

import re
from dataclasses import asdict, dataclass
from typing import Any

SYSTEM_PROMPT = "You grade the answers of a voice assistant. You follow the scale you are given and add no explanation."


@dataclass(frozen=True)
class Rubric:
    """A question to a judge.

    Whoever changes a word of it gives it a new version: verdicts of two versions do not compare.

    Attributes:
        name: Its name.
        version: Of its words.
        template: Its words, with ``{question}``, ``{reply}`` and perhaps ``{reference}``.
        scores: What each verdict counts, by the verdict.
    """

    name: str
    version: int
    template: str
    scores: tuple[tuple[str, float], ...]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What a judge may say."""
        return tuple(verdict for verdict, _ in self.scores)

    def render(self, question: str, reply: str, references: tuple[str, ...] = ()) -> str:
        """Fill in one answer.

        Args:
            question: What was asked.
            reply: What was answered.
            references: Right answers, or what a good one may say.
        """
        places = {"question": question, "reply": reply, "reference": " / ".join(references)}
        # One pass, so that braces in a question or a reply stay what they are.
        return re.sub(r"\{(question|reply|reference)\}", lambda found: places[found[1]], self.template)

    def score(self, answer: str) -> float | None:
        """Read the verdict of a judge.

        Args:
            answer: What it wrote: a verdict, perhaps behind "score" or "rating", in marks, or out of the best.

        Returns:
            What the verdict counts; None if there is none, or more than one.
        """
        text = re.sub(r"[*_`\"'\[\]()#]", "", answer).strip().rstrip(".").casefold()
        text = re.sub(r"^(the\s+)?(final\s+)?(score|rating|verdict|answer)\s*(is|:)?\s*", "", text)
        text = re.sub(rf"\s*(/|out of)\s*{re.escape(self.verdicts[-1])}$", "", text)
        return dict(self.scores).get(text)

    def describe(self) -> dict[str, Any]:
        """Give all of it, for results."""
        return {**asdict(self), "scores": dict(self.scores), "system_prompt": SYSTEM_PROMPT}


_FIVE = tuple((str(points), float(points)) for points in range(1, 6))

RATING = Rubric(
    "rating",
    1,
    """Grade the answer that a voice assistant gave to a spoken question, from 1 to 5.

1: wrong, off the topic, or no answer
2: on the topic, but with serious mistakes or most of the answer missing
3: mostly right, but incomplete, vague or padded with what nobody asked for
4: right and complete, with a small flaw in content or length
5: right, complete and as short as a spoken answer should be

Question:
{question}

Answer:
{reply}

Write the grade alone, a number from 1 to 5.""",
    _FIVE,
)

RATING_WITH_REFERENCE = Rubric(
    "rating with reference",
    1,
    """Grade the answer that a voice assistant gave to a spoken question, from 1 to 5. A reference is given; an answer \
in other words, or a different one that is as good, is as good.

1: wrong, off the topic, or no answer
2: on the topic, but against the reference or with most of it missing
3: mostly in line with the reference, but incomplete, vague or padded with what nobody asked for
4: right and complete, with a small flaw in content or length
5: right, complete and as short as a spoken answer should be

Question:
{question}

Reference:
{reference}

Answer:
{reply}

Write the grade alone, a number from 1 to 5.""",
    _FIVE,
)

CORRECT = Rubric(
    "correct",
    1,
    """Decide whether the answer that a voice assistant gave to a spoken question is correct. Right answers are given, \
of which any one is enough.

Question:
{question}

Right answers:
{reference}

Answer:
{reply}

Write yes or no, and nothing else.""",
    (("no", 0.0), ("yes", 1.0)),
)
