"""Several processes that run one experiment: which of them this is, and what only the first one does.

Processes come in two ways. Lightning's launcher starts the command again, once for each further device, when a fit
begins: such a process takes part in that one stage and ends. Or `torchrun`, SLURM and the like start all processes at
once: then each goes through all stages, takes part in those that several devices train together, and waits for the
first process where one is enough. Only the first process holds run directories, runs jobs, writes records and prints.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from experiments.engine.runs import Run, is_held
from lightning_modules.errors import UserError

# Lightning's launcher passes the environment on, and so tells further processes which stage they were started for.
STAGE = "EXPERIMENT_STAGE"
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")

POLL_S = 0.2
LOSS_S = 2.0
# So long may nobody hold a run directory that is not finished before a waiting process takes the first one for dead.
ABANDONED_S = 120.0


def is_first() -> bool:
    """Tell whether this is the only process, or the one that holds run directories, runs jobs and writes records."""
    return all(int(os.environ.get(name) or 0) == 0 for name in RANKS)


def are_launched_together() -> bool:
    """Tell whether `torchrun`, SLURM or the like started several processes at once."""
    in_step = os.environ.get("SLURM_STEP_ID") is not None
    num_processes = os.environ.get("WORLD_SIZE") or (os.environ.get("SLURM_NTASKS") if in_step else None)
    return int(num_processes or 1) > 1


def own_stage() -> str | None:
    """Give the stage that Lightning's launcher started this process for; None if it was not started so."""
    return None if is_first() else os.environ.get(STAGE)


@contextlib.contextmanager
def launching(stage: str) -> Iterator[None]:
    """Within this context, processes that Lightning starts know their stage; the next stage may start its own.

    Args:
        stage: Name of the stage.
    """
    before = {name: os.environ.get(name) for name in (STAGE, *LAUNCHED)}
    if is_first():
        os.environ[STAGE] = stage
    try:
        yield
    finally:
        if before["LOCAL_RANK"] is None and os.environ.get("LOCAL_RANK") is not None:
            _leave_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class LossWatch:
    """Says at once when a process that Lightning's launcher started fails or is killed.

    Work with such a process fails soon, or waits for it without end, until Lightning kills this process, too, within
    five seconds and without a word.

    Args:
        launcher: Of the strategy of a Trainer; None where nothing is launched.
    """

    def __init__(self, launcher: Any) -> None:
        self._launcher = launcher
        self._is_over, self._has_lost = threading.Event(), threading.Event()

    def __enter__(self) -> LossWatch:
        """Watch from now on."""
        if self._launcher is not None:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        self._is_over.set()

    @property
    def has_lost(self) -> bool:
        """Whether a process was lost; work with it fails a moment before its end is known."""
        return self._launcher is not None and self._has_lost.wait(LOSS_S)

    def _watch(self) -> None:
        while not self._is_over.wait(POLL_S):
            codes = [process.poll() for process in getattr(self._launcher, "procs", [])]
            if any(codes):
                lost = ", ".join(str(code) for code in codes if code)
                print(f"\na process of this training ended with code {lost}; run again to resume", file=sys.stderr)
                self._has_lost.set()
                return


def wait_for(run: Run) -> None:
    """Wait until the first process has finished a run.

    Raises:
        UserError: The first process ended without finishing it.
    """
    last_held_s = time.monotonic()
    while not run.is_finished:
        if is_held(run.directory):
            last_held_s = time.monotonic()
        if time.monotonic() - last_held_s > ABANDONED_S:
            raise UserError(f"the first process left {run.directory} unfinished; its own message says why; run again")
        time.sleep(POLL_S)


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that happens."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _leave_process_group() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
