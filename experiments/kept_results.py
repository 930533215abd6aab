"""The command line that keeps what finished comparisons showed, as small files, and makes tables from these."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.engine.configuration.errors import report_mistake  # noqa: E402
from experiments.kept_files import RESULTS, keep, read  # noqa: E402
from experiments.kept_tables import tabulate  # noqa: E402


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code: 0 done, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(prog="kept_results.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep", help="keep finished comparisons")
    keeping.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="directory of a comparison")
    keeping.add_argument("--into", type=Path, default=RESULTS, help="folder of the files")
    tables = commands.add_parser("table", help="make a table from files, one per seed")
    tables.add_argument("files", nargs="+", metavar="FILE", type=Path)
    tables.add_argument("--baseline", help="decoding that all are compared with")
    tables.add_argument("--against", choices=("text", "gold"), default="text", help="thinker's own text or gold reply")
    of_others = "files of another experiment, of the same seeds: each decoding minus that of its name there"
    tables.add_argument("--minus", nargs="+", metavar="FILE", type=Path, default=[], help=of_others)
    of_row = "a decoding of these that all are compared with, in place of that of each name"
    tables.add_argument("--of-others", metavar="DECODING", help=of_row)
    of_differing = "take files that differ in more than the seed, and tell in which stages"
    tables.add_argument("--may-differ", action="store_true", help=of_differing)
    try:
        parsed = parser.parse_args(arguments)
        if parsed.command == "keep":
            for run in parsed.runs:
                print(f"kept {keep(run, parsed.into)}")
        else:
            files, others = ([read(file) for file in files] for files in (parsed.files, parsed.minus))
            settings = parsed.baseline, parsed.against, others, parsed.may_differ, parsed.of_others
            print(tabulate(files, *settings))
    except Exception as error:
        return report_mistake(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
