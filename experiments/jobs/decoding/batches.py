"""How many tokens per second come of many replies that are decoded at once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from experiments.jobs.decoding.executions import BatchRunner, Execution
from experiments.jobs.decoding.machine import CLOCKS, wait_for
from experiments.jobs.decoding.statistics import Spread, order_of_turn, spread_of
from experiments.jobs.decoding.talkers import draw_text_of_batch
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.network.anchors import TextStates


@dataclass(frozen=True)
class BatchThroughput:
    """Decodes batches of growing size in turn, until its time is spent.

    Attributes:
        decodings: Names of the decodings that are measured.
        sizes: Replies at once, from few to many.
        num_blocks: Blocks of a reply.
        num_rounds: Batches of each size, after one that is not timed.
        time_budget_s: After this time no larger size begins.

    Raises:
        UserError: If there is no size, or a number is out of range.
    """

    decodings: Sequence[str] = ("ntp", "mdm_4", "mdm_1")
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    num_blocks: int = 3
    num_rounds: int = 3
    time_budget_s: float = 60.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.sizes:
            raise UserError("batches.sizes: give at least one")
        numbers = {"num_blocks": self.num_blocks, "num_rounds": self.num_rounds, "sizes": min(self.sizes)}
        require_at_least(1, **{f"batches.{name}": value for name, value in numbers.items()})
        require_positive(**{"batches.time_budget_s": self.time_budget_s})

    def among(self, names: Sequence[str]) -> "BatchThroughput | None":
        """Measure only those of some names; None if none of its own is there."""
        kept = [name for name in self.decodings if name in names]
        return replace(self, decodings=kept) if kept else None

    def measure(
        self,
        talkers: Mapping[str, Talker],
        decodings: Mapping[str, Decoding],
        executions: Mapping[str, Execution],
        dtype: torch.dtype,
        device: torch.device,
        clock: str,
    ) -> dict[str, dict[int, Spread]]:
        """Measure each decoding under each execution that decodes batches.

        Args:
            talkers: Talkers by name.
            decodings: All decodings by name.
            executions: Executions by name.
            dtype: Of the text states.
            device: Where.
            clock: One of `CLOCKS`.

        Returns:
            Tokens per second of all rows together, by case and size.

        Raises:
            UserError: If a name is none of the decodings.
        """
        unknown = [name for name in self.decodings if name not in decodings]
        if unknown:
            raise UserError(
                f"batches.decodings: {unknown[0]!r} is none of the decodings; name some of {list(decodings)}"
            )
        start, rates = time.perf_counter(), {}
        for size in sorted(self.sizes):
            if rates and time.perf_counter() - start > self.time_budget_s:
                break
            cases: dict[str, tuple[BatchRunner, TextStates, int]] = {}
            for name in self.decodings:
                talker = talkers[decodings[name].talker]
                for execution, how in executions.items():
                    runner = how.prepare_batch(talker, decodings[name], self.num_blocks, size)
                    if runner is not None:
                        text = draw_text_of_batch(talker, self.num_blocks, size, dtype, device)
                        runner(text)
                        cases[f"{name}, {execution}"] = runner, text, size * self.num_blocks * talker.block_size
            measured: dict[str, list[float]] = {name: [] for name in cases}
            for turn in range(self.num_rounds):
                for name in order_of_turn(list(cases), turn):
                    measured[name].append(_rate(*cases[name], device, clock))
            for name, values in measured.items():
                rates.setdefault(name, {})[size] = spread_of(values)
        return rates


def _rate(runner: BatchRunner, text: TextStates, num_tokens: int, device: torch.device, clock: str) -> float:
    wait_for(device)
    start = CLOCKS[clock]()
    rows = runner(text)
    wait_for(device)
    seconds = CLOCKS[clock]() - start
    found = sum(map(len, rows))
    assert found == num_tokens, f"{found} tokens in place of {num_tokens}: a talker said EOS"
    return num_tokens / seconds
