"""The command line that compares two decodings on the dialogues that both answered: which is worse, and by how much."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.engine.configuration.errors import report_mistake  # noqa: E402
from experiments.transcripts import read_records  # noqa: E402
from lightning_modules.errors import UserError  # noqa: E402
from lightning_modules.evaluation.paired_word_errors import paired_difference  # noqa: E402

Transcripts = dict[str, dict[str, str]]


def read_transcripts(place: str) -> Transcripts:
    """Read what a decoding said.

    Args:
        place: The directory of a stage that ended with a comparison, a colon, and the name of a decoding.

    Returns:
        `gold`, `text` and `heard` of each dialogue, by its id.

    Raises:
        FileNotFoundError: If there is no comparison.
        UserError: If it has no such decoding.
    """
    run, _, decoding = place.rpartition(":")
    if not run or not (Path(run) / "transcripts.json").is_file():
        raise FileNotFoundError(f"{place}: no comparison; give RUN:DECODING, where RUN/transcripts.json is")
    return {record["id"]: record for record in read_records(Path(run), [decoding])[decoding]}


def compare(first: Transcripts, second: Transcripts, against: str) -> str:
    """Say how much worse the second decoding is than the first.

    Args:
        first: From :func:`read_transcripts`.
        second: The same.
        against: "gold" or "text", what the speech is held against.

    Returns:
        A sentence with both word error rates, their difference in points and its interval.

    Raises:
        UserError: If they have no dialogue in common, or one of that id has two gold replies.
    """
    both = [name for name in first if name in second]
    if not both:
        raise UserError("the two have no dialogue in common; compare runs on the same test set")
    for name in both:
        if first[name]["gold"] != second[name]["gold"]:
            raise UserError(
                f"{name} has the replies {first[name]['gold']!r} and {second[name]['gold']!r}; compare runs on the "
                "same test set"
            )
    pairs = [[(which[name][against], which[name]["heard"]) for name in both] for which in (first, second)]
    found = paired_difference(*pairs)
    low, high = (100 * bound for bound in found.interval)
    left_out = len(first) + len(second) - 2 * len(both)
    return (
        f"WER against {against}: {100 * found.first:.2f} % and {100 * found.second:.2f} %, difference "
        f"{100 * found.difference:+.2f} points (95 %: {low:+.2f} to {high:+.2f}) over {found.num_utterances} dialogues"
        + (f"; {left_out} that only one answered are left out" if left_out else "")
    )


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code: 0 done, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(prog="paired.py", description=__doc__)
    what = "directory of a comparison, a colon, and the name of a decoding"
    parser.add_argument("first", metavar="RUN:DECODING", help=what)
    parser.add_argument(
        "second", metavar="RUN:DECODING", help="the same; the difference is this one's minus the first's"
    )
    parser.add_argument("--against", choices=("gold", "text"), default="gold", help="gold reply or thinker's own text")
    try:
        parsed = parser.parse_args(arguments)
        print(compare(read_transcripts(parsed.first), read_transcripts(parsed.second), parsed.against))
    except Exception as error:
        return report_mistake(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
