"""What judges have in common: they are asked in writing, and say which judge they are."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class JudgeRequest:
    """One question to a judge.

    Attributes:
        key: Names it among all.
        system: What the judge is told to be.
        text: What it is asked.
        verdicts: What it may answer.
    """

    key: str
    system: str
    text: str
    verdicts: tuple[str, ...]


class Judge(ABC):
    """Answers requests."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Say which judge it is and how it decides: equal descriptions give verdicts that compare.

        Raises:
            FileNotFoundError: If a file of it is missing.
        """

    @abstractmethod
    def ask(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[JudgeRequest, str]]:
        """Answer requests, in any order, each as soon as it is known.

        Yields:
            A request, and what the judge wrote.

        Raises:
            UserError: If the judge cannot be asked.
        """
