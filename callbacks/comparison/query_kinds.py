"""Kinds of queries, by the replies that they ask for."""

import re
from collections.abc import Mapping

from lightning_modules.errors import UserError

OTHER = "other"


class QueryKinds:
    """Tells the kind of a query by the gold reply.

    Args:
        patterns: Regular expressions by kind; the first that matches a whole reply, whatever its case, names it.

    Raises:
        UserError: If an expression is not valid.
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self.patterns: dict[str, re.Pattern[str]] = {}
        for kind, pattern in patterns.items():
            try:
                self.patterns[kind] = re.compile(pattern, re.IGNORECASE)
            except re.error as error:
                raise UserError(f"the pattern {pattern!r} of the kind {kind} is not valid: {error}") from error

    def __call__(self, reply: str) -> str:
        """Give the kind of the query that has this gold reply; "other" if no pattern matches."""
        return next((kind for kind, pattern in self.patterns.items() if pattern.fullmatch(reply.strip())), OTHER)
