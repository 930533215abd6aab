"""Mistakes of a user, told in one line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

from lightning_modules.errors import UserError


class ConfigError(UserError):
    """A mistake in an experiment, with the YAML path where it is and how to fix it."""

    def __init__(self, path: str, problem: str) -> None:
        """Compose the line.

        Args:
            path: Dotted YAML path of the mistake, for instance `stages.codec.trainer.max_steps`; may be empty.
            problem: What is wrong, and how to fix it.
        """
        self.path = path
        self.problem = " ".join(problem.split())
        super().__init__(f"{path}: {self.problem}" if path else self.problem)


def join(path: str, key: object) -> str:
    """Return the dotted YAML path of `key` below `path`."""
    return f"{path}.{key}" if path else str(key)


def did_you_mean(name: object, known: Iterable[str], list_all: bool = True) -> str:
    """Return a hint that names the closest of the known names, or else lists them all."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(names)}" if list_all and names else "check the spelling"


def text_of(error: BaseException) -> str:
    """Return the message of an exception for a user."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {error.filename}; restore it, or run the stage that writes it again with --force"
    return str(error)


def report_mistake(error: BaseException) -> int:
    """Print a mistake of the user that is being handled, and return the exit code 2; raise anything else again."""
    if not is_users_mistake(error):
        raise error
    print(f"error: {text_of(error)}", file=sys.stderr)
    return 2


def is_users_mistake(error: BaseException) -> bool:
    """Tell a mistake of the user from a defect of the program, which deserves its traceback."""
    return isinstance(error, UserError | FileNotFoundError)
