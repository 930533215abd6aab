"""A job that puts the live server of a run through all kinds of trouble, and measures how soon it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.formats.atomic_files import write_json, write_text
from experiments.jobs.speaking.speaking_model import load_speaking_model
from experiments.live.queries import read_test_queries
from experiments.live.server import ServerThread
from experiments.live.system import Limits, LiveSystem
from experiments.live.trials import trouble
from experiments.live.trials.trial_client import connected
from lightning_modules.errors import UserError
from lightning_modules.evaluation.bootstrap import draw_counts, interval_of
from lightning_modules.number_checks import require_at_least, require_positive

GROWTH_MB = 20.0  # of memory over the connections that is still taken for flat


class LiveTrials:
    """Serves a run's models to clients that make trouble, and to one that compares two decodings.

    Args:
        run: What speaks; see :class:`~experiments.live.live_page.LivePage`.
        decodings: Two, of which the second one's first chunk is compared with the first one's.
        num_clients: Clients that ask at once.
        num_connections: Connections that are left at random moments.
        num_messages: Random messages.
        num_queries: Test queries whose first chunks are measured; at most as many as there are.
        patience_s: How long the server waits for a client that does not read.
        seed: Of everything that is random.

    Raises:
        UserError: If a number is out of range, or there are not two decodings.
    """

    def __init__(
        self,
        run: Path,
        decodings: Sequence[str] = ("ntp", "mdm_4"),
        num_clients: int = 20,
        num_connections: int = 500,
        num_messages: int = 10_000,
        num_queries: int = 100,
        patience_s: float = 10.0,
        seed: int = 0,
    ) -> None:
        require_at_least(1, num_clients=num_clients, num_connections=num_connections)
        require_at_least(1, num_messages=num_messages, num_queries=num_queries)
        require_at_least(0, seed=seed)
        require_positive(patience_s=patience_s)
        if len(decodings) != 2:
            raise UserError(f"decodings are {list(decodings)}; name two to compare")
        self.from_run, self.decodings = Path(run), list(decodings)
        self.num_clients, self.num_connections, self.num_messages = num_clients, num_connections, num_messages
        self.num_queries, self.patience_s, self.seed = num_queries, patience_s, seed

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write ``results.json`` and ``summary.txt``.

        Args:
            output_dir: The run directory.

        Returns:
            What was measured, by trial.

        Raises:
            FileNotFoundError: If the run is missing.
            UserError: If it has no such decodings or no test queries, or a trial failed.
        """
        model = load_speaking_model(self.from_run)
        queries = read_test_queries(model.config, self.num_queries)
        missing = [name for name in self.decodings if name not in model.decodings]
        if missing or not queries:
            what = f"decodings {missing}" if missing else "test queries"
            raise UserError(f"{model.source} has no {what}; give a comparison whose corpus is there")
        measured = self.measure(LiveSystem(model, queries, limits=self.limits))
        write_json(Path(output_dir) / "results.json", measured)
        lines = [f"{trial}: {_line(values)}" for trial, values in measured.items()]
        failed = failures_of(measured, self.num_clients, self.num_messages)
        lines += [f"failed: {failure}" for failure in failed]
        write_text(Path(output_dir) / "summary.txt", "\n".join(lines) + "\n")
        if failed:
            raise UserError(f"{len(failed)} of the trials failed, see {output_dir}/summary.txt: {failed[0]}")
        return {f"{trial}/{name}": value for trial, values in measured.items() for name, value in values.items()}

    @property
    def limits(self) -> Limits:
        """What the server allows: all clients at once, none of them sent away."""
        return Limits(
            max_clients=max(Limits.max_clients, self.num_clients),
            max_waiting=max(Limits.max_waiting, self.num_clients),
            patience_s=self.patience_s,
        )

    def measure(self, system: LiveSystem) -> dict[str, dict[str, float]]:
        """Do all trials on one server.

        Args:
            system: What is served; it is closed behind the trials.

        Returns:
            What each gave.
        """
        system.warm_up()
        with ServerThread(system) as server:
            return asyncio.run(self._measure(server, [one.id for one in system.queries]))

    async def _measure(self, server: ServerThread, queries: list[str]) -> dict[str, dict[str, float]]:
        address, decoding = server.address, self.decodings[1]
        measured = {"first chunk": await self._first_chunks(address, queries)}
        measured["crowd"] = await trouble.crowd(address, self.num_clients, queries, decoding)
        measured["long query"] = await trouble.long_query(address, queries[0], decoding)
        measured["silent reader"] = await trouble.silent_reader(server, queries[0], decoding)
        measured["random messages"] = await trouble.random_messages(
            address, self.num_messages, queries[0], self.decodings, self.seed
        )
        measured["disconnects"] = await trouble.disconnects(
            server, self.num_connections, self.num_clients, queries, self.decodings, self.seed
        )
        return measured

    async def _first_chunks(self, address: str, queries: list[str]) -> dict[str, float]:
        """Compare the first chunks of two decodings, on the server's clock, query by query; each goes first in turn."""
        found: dict[str, list[float]] = {name: [] for name in self.decodings}
        async with connected(address) as client:
            for number, query in enumerate(queries):
                order = self.decodings if number % 2 == 0 else self.decodings[::-1]
                for message in await client.ask(query, *order):
                    if message["type"] == "first_chunk":
                        found[message["decoding"]].append(message["stages_ms"]["total"])
        first, second = (np.array(found[name]) for name in self.decodings)
        differences = second - first
        low, high = interval_of(draw_counts(len(differences), self.seed) @ differences / len(differences))
        return {
            "num_queries": float(len(differences)),
            **{f"{name}_median_ms": float(np.median(values)) for name, values in found.items()},
            "difference_ms": float(differences.mean()),
            "difference_low_ms": float(low),
            "difference_high_ms": float(high),
        }


def failures_of(measured: dict[str, dict[str, float]], num_clients: int, num_messages: int) -> list[str]:
    """Tell which trials did not go as they must."""
    crowd, messages, left = measured["crowd"], measured["random messages"], measured["disconnects"]
    growth_mb = left["rss_last_mb"] - left["rss_first_mb"]
    must = {
        f"{crowd['answered']:.0f} of {num_clients} clients at once were answered": crowd["answered"] == num_clients,
        "a query of a minute was not refused": measured["long query"]["is_refused"] == 1,
        "after a query of a minute none was answered": measured["long query"]["is_answered"] == 1,
        "a client that never reads was not given up": measured["silent reader"]["is_given_up"] == 1,
        "beside a client that never reads none was answered": measured["silent reader"]["is_answered"] == 1,
        "not all random messages were sent": messages["sent"] == num_messages,
        "after random messages no query was answered": messages["is_answered"] == 1,
        f"{left['clients_after']:.0f} connections were left behind": left["clients_after"] == 0,
        f"tasks grew from {left['tasks_before']:.0f} to {left['tasks_after']:.0f}": (
            left["tasks_after"] <= left["tasks_before"]
        ),
        f"memory grew by {growth_mb:.1f} MB": growth_mb < GROWTH_MB,
    }
    return [failure for failure, is_well in must.items() if not is_well]


def _line(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in values.items())
