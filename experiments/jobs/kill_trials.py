"""A job that kills trainings at random moments and compares them with trainings that were not killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.formats.atomic_files import write_json, write_text
from datamodules.formats.released_layout import check_fields
from datamodules.shards.shard_index import INDEX, ShardIndex
from experiments.jobs.killed_training import RESULTS, KillCase, Training, work
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive

CASES = (
    KillCase(),
    KillCase(num_workers=2),
    KillCase(num_ranks=(2,)),
    KillCase(num_ranks=(2,), num_workers=2),
    KillCase(num_workers=2, accumulate=2),
    KillCase(num_ranks=(2, 1)),
)


class KillTrials:
    """Shows that a killed training loses no example, repeats none, and comes to the same losses.

    Each case trains a small model on a converted corpus once without a kill, and then repeatedly with SIGKILLs to all
    of its processes, each at a random moment (training, reading, writing a checkpoint), until it has had its share of
    the kills. A killed training must have seen the same examples in the same order with the same losses. If the number
    of processes changes on the way, losses cannot be equal: then each epoch must hold each example once.

    Args:
        corpus: Directory that the conversion wrote.
        num_kills: Kills of all cases together.
        cases: Ways to train.
        num_epochs: Length of a training.
        max_tokens: Speech tokens of a batch.
        checkpoint_every: Batches between two checkpoints.
        seed: Seeds the moments of the kills.
        fields: What a batch holds: "units", and perhaps "text_states" that lie beside the speech.

    Raises:
        UserError: If a number is out of range, or there is no case.
    """

    def __init__(
        self,
        corpus: str,
        num_kills: int = 100,
        cases: Sequence[KillCase] = CASES,
        num_epochs: float = 2.5,
        max_tokens: int = 400,
        checkpoint_every: int = 4,
        seed: int = 0,
        fields: Sequence[str] = ("units",),
    ) -> None:
        require_at_least(1, num_kills=num_kills, max_tokens=max_tokens, checkpoint_every=checkpoint_every)
        require_positive(num_epochs=num_epochs)
        require_at_least(0, seed=seed)
        if not cases:
            raise UserError("cases is empty; give at least one way to train")
        self.corpus, self.num_kills, self.cases = corpus, num_kills, list(cases)
        self.num_epochs, self.max_tokens, self.checkpoint_every = num_epochs, max_tokens, checkpoint_every
        self.seed, self.fields = seed, check_fields(fields, ("units", "text_states"))

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `trials.json` and a table, `results.md`.

        Args:
            output_dir: The run directory.

        Returns:
            Numbers of kills and of trainings.

        Raises:
            UserError: If a killed training differs from one that was not, with what differs.
        """
        shares = [self.num_kills // len(self.cases)] * len(self.cases)
        for place in range(self.num_kills % len(self.cases)):
            shares[place] += 1
        rows = []
        with tqdm(total=self.num_kills, desc="killing", unit="kill") as progress:
            for number, (case, num_kills) in enumerate(zip(self.cases, shares, strict=True)):
                rows.append(self._try(number, case, num_kills, Path(output_dir), progress))
        write_json(Path(output_dir) / "trials.json", rows)
        write_text(Path(output_dir) / "results.md", _table(rows))
        return {name: sum(row[name] for row in rows) for name in ("num_kills", "num_trainings", "num_examples")}

    def _try(self, number: int, case: KillCase, num_kills: int, output_dir: Path, progress: tqdm) -> dict[str, Any]:
        generator = random.Random(f"{self.seed}/{number}")
        expected = self._train(case, 0, output_dir / f"case-{number}-whole", generator, progress)[0]
        _check_epochs(expected, ShardIndex.load(Path(self.corpus) / INDEX).ids.tolist(), case)
        row: dict[str, Any] = {**asdict(case), "num_kills": 0, "num_trainings": 0, "num_examples": 0}
        while row["num_kills"] < num_kills:
            folder = output_dir / f"case-{number}-{row['num_trainings']}"
            left = num_kills - row["num_kills"]
            found, killed = self._train(case, left, folder, generator, progress)
            _compare(found, expected, case, folder)
            row["num_kills"] += killed
            row["num_trainings"] += 1
            row["num_examples"] += sum(len(ids) for step in found["ids"] for ids in step)
        return row

    def _train(
        self, case: KillCase, max_kills: int, folder: Path, generator: random.Random, progress: tqdm
    ) -> tuple[dict[str, Any], int]:
        """Train to the end, however often it is killed; return its record and the number of kills."""
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        task = Training(
            self.corpus,
            str(folder),
            case,
            self.num_epochs,
            self.max_tokens,
            self.checkpoint_every,
            self.seed,
            1,
            self.fields,
        )
        killed = 0
        while True:
            task = replace(task, num_ranks=case.num_ranks[killed % len(case.num_ranks)])
            processes = _start(task)
            if killed < max_kills and _kill(processes, task, generator):
                killed += 1
                progress.update()
                continue
            for process in processes:
                process.join()
            if any(process.exitcode for process in processes):
                raise UserError(f"{folder}: a training ended with {[process.exitcode for process in processes]}")
            return json.loads((folder / RESULTS).read_text()), killed


def _start(task: Training) -> list[BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])  # imports once, not once per kill
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    method = multiprocessing.get_start_method()
    processes = [context.Process(target=work, args=(task, rank, port, method)) for rank in range(task.num_ranks)]
    for process in processes:
        process.start()
    return processes


def _kill(processes: list[BaseProcess], task: Training, generator: random.Random) -> bool:
    """Kill all processes some batches and an instant from now; return False if they were done before."""
    batches, instant_s = generator.randint(1, 12), generator.uniform(0.0, 0.05)
    heartbeat = task.heartbeat
    begin = heartbeat.stat().st_size if heartbeat.exists() else 0
    while not heartbeat.exists() or heartbeat.stat().st_size < begin + batches:
        if any(process.exitcode is not None for process in processes):
            return False
        time.sleep(0.002)
    time.sleep(instant_s)
    if (Path(task.folder) / RESULTS).exists():
        return False
    for process in processes:
        assert process.pid is not None, "it was started"
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()
    return True


def _check_epochs(record: dict[str, Any], names: list[str], case: KillCase) -> None:
    """Raise UserError if an epoch does not hold each example once."""
    seen = [name for step in record["ids"] for ids in step for name in ids]
    for begin in range(0, len(seen), len(names)):
        counts = Counter(seen[begin : begin + len(names)])
        twice = [name for name, count in counts.items() if count > 1]
        lost = set(names) - set(counts) if begin + len(names) <= len(seen) else set()
        if twice or lost:
            raise UserError(
                f"{case}, epoch {begin // len(names)}: {len(twice)} examples came more than once "
                f"({twice[:3]}), {len(lost)} did not come ({sorted(lost)[:3]})"
            )


def _compare(found: dict[str, Any], expected: dict[str, Any], case: KillCase, folder: Path) -> None:
    if len(set(case.num_ranks)) > 1:
        names = sorted({name for step in expected["ids"] for ids in step for name in ids})
        _check_epochs(found, names, case)
        return
    for key in ("ids", "losses"):
        if found[key] != expected[key]:
            pairs = zip(found[key], expected[key], strict=False)
            step = next((place for place, (a, b) in enumerate(pairs) if a != b), len(found[key]))
            raise UserError(f"{folder}: {key} differ from batch {step} on from those of the training without a kill")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| processes | workers | batches per step | kills | trainings | examples |", "|---|---|---|---|---|---|"]
    for row in rows:
        ranks = " and ".join(str(number) for number in row["num_ranks"])
        counts = [row[key] for key in ("num_workers", "accumulate", "num_kills", "num_trainings", "num_examples")]
        lines.append(f"| {ranks} | {' | '.join(str(count) for count in counts)} |")
    return "\n".join(lines) + "\n"
