"""The command line: run an experiment, or look at it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from callbacks.runtime.garbage import no_garbage_collection  # noqa: E402
from callbacks.runtime.signals import Interrupted, interruptible  # noqa: E402
from experiments.engine import ranks  # noqa: E402
from experiments.engine.configuration import config  # noqa: E402
from experiments.engine.configuration.errors import ConfigError, report_mistake  # noqa: E402
from experiments.engine.configuration.help import describe_file  # noqa: E402
from experiments.engine.plan import make_plan  # noqa: E402

EPILOG = """examples:
  python experiments/run.py
  python experiments/run.py quickstart seed=1 stages.talkers.trainer.max_steps=500
  python experiments/run.py quickstart --print-config
  python experiments/run.py codec inputs.corpus=PATH
  python experiments/run.py speak text="Lucy has to be in the capital of Russia on Wednesday"
  python experiments/run.py speak --help

Runs are kept under runs/; a finished stage whose configuration and inputs are unchanged is reused."""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="run.py", description="Run an experiment.", epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter,
        add_help=False,
    )  # fmt: skip
    what = "an experiment or a single stage (quickstart if none is named), and overrides"
    parser.add_argument("words", nargs="*", metavar="NAME, FILE or key=value", help=what)
    of_name = "print this help, or with a NAME what one sets of that experiment, and stop"
    parser.add_argument("-h", "--help", action="store_true", help=of_name)
    parser.add_argument("--list", action="store_true", help="list the shipped experiments and stages")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--resume", action="store_true", help="resume a run that was begun; fail if there is none")
    parser.add_argument("--force", action="store_true", help="delete the runs of this configuration and run again")
    parsed = parser.parse_intermixed_args(arguments)
    files = [word for word in parsed.words if "=" not in word]
    if len(files) > 1:
        raise ConfigError("", f"one experiment at a time, got {' and '.join(files)}; write overrides as key=value")
    if parsed.resume and parsed.force:
        raise ConfigError("", "--resume continues a run and --force deletes it; give one of them")
    if parsed.help:
        text = describe_file(config.find_file(files[0], Path.cwd())) if files else parser.format_help()
        print(text.rstrip("\n"))
        sys.exit(0)
    parsed.file = files[0] if files else "quickstart"
    parsed.overrides = [word for word in parsed.words if "=" in word]
    return parsed


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code: 0 done, 2 a mistake of the user, 130 or 143 interrupted."""
    try:
        with interruptible():
            parsed = parse_arguments(arguments)
            if parsed.list:
                print(config.describe_shipped())
                return 0
            file = config.find_file(parsed.file, Path.cwd())
            is_further = ranks.own_stage() is not None  # the process that started this one has checked the plan
            with no_garbage_collection():
                plan = make_plan(file, parsed.overrides, check=not is_further, redo=parsed.force)
                if parsed.print_config:
                    print(plan.to_yaml(), end="")
                    return 0
                from experiments.engine.pipeline import execute  # imports torch

            execute(plan, force=parsed.force, resume=parsed.resume)
    except Exception as error:
        return report_mistake(error)
    except Interrupted as interrupted:
        if not ranks.is_first():
            return 0  # the first process says it, and takes anything else for a failure
        words = [word for word in arguments if word not in ("--force", "--resume")]
        again = shlex.join(["python", "experiments/run.py", *words])
        print(f"\ninterrupted: {interrupted}\nto resume, run again: {again}", file=sys.stderr)
        return interrupted.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
