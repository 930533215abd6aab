"""A job that measures how fast talkers decode, under each way to run them, against what the machine could do."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from callbacks.runtime.training_cost import peak_memory_gb
from datamodules.formats.atomic_files import write_text
from experiments.engine.environment import describe_environment
from experiments.engine.runs import write_json
from experiments.jobs.decoding.batches import BatchThroughput
from experiments.jobs.decoding.counting import Reads, count_launches, count_reads
from experiments.jobs.decoding.executions import Execution, Stepwise
from experiments.jobs.decoding.first_chunk import TALKER, FirstChunk
from experiments.jobs.decoding.machine import CLOCKS, MAIN_MEMORY_BYTES, matrix_rate, processor, read_bandwidth
from experiments.jobs.decoding.replies import Case
from experiments.jobs.decoding.report.figures import (
    PEAK_ROWS,
    MachineRates,
    bytes_per_pass,
    figures_of,
    read_word_error_rates,
    rows_per_pass,
)
from experiments.jobs.decoding.report.pictures import draw_pareto, draw_throughput, draw_waterfall
from experiments.jobs.decoding.report.tables import batch_table, cost_table, introduction, speed_table
from experiments.jobs.decoding.statistics import order_of_turn, spread_of
from experiments.jobs.decoding.talkers import (
    DTYPES,
    TalkerSizes,
    ban_eos,
    build_talkers,
    draw_talkers,
    draw_text,
    num_text_tokens,
)
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding

DEVICES = ("auto", "cpu", "cuda")


class DecodingBenchmark:
    """Decodes replies of fixed length with every decoding under every execution in turn, and times them.

    Weights are drawn, unless talkers are given; EOS is banned, see :func:`ban_eos`. After one reply of each that is not
    timed come rounds, each with one reply of each. All figures stand beside what the machine does at best, measured in
    the same run on the same number of threads.

    Args:
        decodings: Decodings by name; None leaves one out.
        executions: Ways to run them by name; the first one is what others are held against. None leaves one out.
        sizes: Of the talkers that are drawn; the quickstart's if None.
        talkers: Trained talkers by name, in place of drawn ones.
        dtype: Of the weights, "float32" or "bfloat16".
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        clock: "wall", or "process" for the seconds that this process computes: for one thread of a shared CPU.
        baseline: The decoding that others are held against.
        num_blocks: Blocks of a reply, at least 3.
        num_rounds: Timed replies of each, at most.
        min_rounds: Timed replies of each, even if they take more than the budget.
        time_budget_s: After this time no further round begins.
        quality: `results.json` of a comparison, whose word error rates stand beside speeds of the same names.
        first_chunk: What else runs until the first samples; left out, the talker's part alone is shown.
        batches: Which decodings are measured with many replies at once; none if left out.
        seed: Of weights and intervals.

    Raises:
        UserError: If a number is out of range, a name is unknown, or a talker does not know a decoding.
    """

    def __init__(
        self,
        decodings: dict[str, Decoding | None],
        executions: dict[str, Execution | None],
        sizes: TalkerSizes | None = None,
        talkers: dict[str, Talker] | None = None,
        dtype: str = "bfloat16",
        device: str = "auto",
        clock: str = "wall",
        baseline: str = "ntp",
        num_blocks: int = 6,
        num_rounds: int = 15,
        min_rounds: int = 3,
        time_budget_s: float = 240.0,
        quality: Path | None = None,
        first_chunk: FirstChunk | None = None,
        batches: BatchThroughput | None = None,
        seed: int = 0,
    ) -> None:
        require_at_least(3, num_blocks=num_blocks)
        require_at_least(1, num_rounds=num_rounds, min_rounds=min_rounds)
        require_at_least(0, seed=seed)
        require_positive(time_budget_s=time_budget_s)
        for what, value, known in (("dtype", dtype, DTYPES), ("device", device, DEVICES), ("clock", clock, CLOCKS)):
            if value not in known:
                raise UserError(f"{what} is {value!r}; choose one of {', '.join(known)}")
        self.executions = {name: one for name, one in executions.items() if one is not None}
        wanted = {name: one for name, one in decodings.items() if one is not None}
        if not self.executions:
            raise UserError("executions: give at least one, by name")
        if baseline not in wanted:
            raise UserError(f"baseline is {baseline!r}, which is none of the decodings; name one of {list(wanted)}")
        self.given, self.sizes = talkers or {}, sizes or TalkerSizes()
        self.drawn = {one.talker for one in wanted.values()} - set(self.given)
        with torch.device("meta"):
            known = {**self.given, **build_talkers(self.sizes, self.drawn)}
        self.decodings = {}
        for name, decoding in wanted.items():
            talker = known[decoding.talker]
            talker.check(decoding)
            self.decodings[name] = replace(decoding, num_steps=talker.num_steps_of(decoding))
        self.reference, self.baseline = next(iter(self.executions)), baseline
        has_gpu = torch.cuda.is_available()
        self.device = torch.device(("cuda" if has_gpu else "cpu") if device == "auto" else device)
        if clock == "process" and self.device.type == "cuda":
            raise UserError("clock is 'process', which does not count what a GPU computes; leave it at 'wall'")
        self.clock = clock
        self.dtype, self.seed, self.num_blocks = DTYPES[dtype], seed, num_blocks
        self.num_rounds, self.min_rounds, self.time_budget_s = num_rounds, min(min_rounds, num_rounds), time_budget_s
        self.quality, self.first_chunk, self.batches = quality, first_chunk, batches

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `measured.json`, `summary.txt` and the pictures.

        Args:
            output_dir: The run directory.

        Returns:
            The median of the tokens per second of each case.

        Raises:
            FileNotFoundError: If there is no such file as `quality`.
            UserError: If it is no comparison's, or a reply has another length than it should.
        """
        output_dir, start = Path(output_dir), time.perf_counter()
        word_error_rates = None if self.quality is None else read_word_error_rates(self.quality)
        load_before = os.getloadavg()[0]
        talkers = self._talkers()
        if self.first_chunk is not None:
            self.first_chunk.move_to(self.device)
        cases = self._prepare(talkers)
        reads = {name: self._count_reads(talkers[one.talker], one) for name, one in self.decodings.items()}
        launches = {key: count_launches(case.stream, self.device) for key, case in cases.items()}
        rates = self._measure_machine(reads)
        first_chunk_ms = self._run_rounds(cases, talkers, start)
        rates = rates.best_of(self._measure_machine(reads))
        by_name = {
            one.name: figures_of(one, cases, reads[one.decoding], launches[key], rates, self.reference, self.baseline)
            for key, one in cases.items()
        }
        figures = list(by_name.values())
        throughput = {}
        if self.batches is not None:
            settings = self.decodings, self.executions, self.dtype, self.device, self.clock
            throughput = self.batches.measure(talkers, *settings)
        about = self._about(len(next(iter(cases.values())).replies), load_before, start)
        measured = {
            "about": about,
            "machine": asdict(rates),
            "first_chunk_ms": first_chunk_ms,
            "word_error_rates": word_error_rates,
            "tokens_per_s_of_batches": throughput,
            "cases": by_name,
        }
        write_json(output_dir / "measured.json", measured)
        tables = [speed_table(figures, self.baseline, self.reference), cost_table(figures)]
        tables += [batch_table(throughput)] if throughput else []
        write_text(output_dir / "summary.txt", "\n".join([introduction(about, rates), *tables]))
        draw_pareto(figures).savefig(output_dir / "speed_over_passes.png", dpi=120)
        if word_error_rates is not None:
            draw_pareto(figures, word_error_rates).savefig(output_dir / "pareto.png", dpi=120)
        if throughput:
            draw_throughput(throughput).savefig(output_dir / "batches.png", dpi=120)
        draw_waterfall(first_chunk_ms).savefig(output_dir / "waterfall.png", dpi=120)
        return {f"{name}/tokens_per_s": one["tokens_per_s"].median for name, one in by_name.items()}

    def _talkers(self) -> dict[str, Talker]:
        drawn = draw_talkers(self.sizes, self.drawn, self.dtype, self.device, self.seed)
        given = {name: talker.to(self.device, self.dtype).eval() for name, talker in self.given.items()}
        talkers = {**given, **drawn}
        ban_eos(talkers)
        return talkers

    def _prepare(self, talkers: Mapping[str, Talker]) -> dict[tuple[str, str], Case]:
        """Prepare and warm up each case; those that an execution does not know are left out, with a line."""
        cases = {}
        for name, decoding in self.decodings.items():
            talker = talkers[decoding.talker]
            text = draw_text(talker, self.num_blocks, self.dtype, self.device)
            for execution, how in self.executions.items():
                start = time.perf_counter()
                runner = how.prepare(talker, decoding, self.num_blocks)
                if runner is None:
                    print(f"{name}: not known to the execution {execution}", flush=True)
                    continue
                case = Case(name, execution, runner, text, self.num_blocks, talker.block_size)
                if self.first_chunk is not None:
                    case.num_first_blocks = self.first_chunk.num_blocks(case.block_size, self.num_blocks)
                case.speak(self.device)
                case.setup_s = time.perf_counter() - start
                cases[name, execution] = case
        return cases

    def _count_reads(self, talker: Talker, decoding: Decoding) -> Reads:
        runner = Stepwise().prepare(talker, decoding, 3)
        assert runner is not None
        text = draw_text(talker, 3, self.dtype, self.device)
        return count_reads(talker, lambda: runner(text))

    def _measure_machine(self, reads: Mapping[str, Reads]) -> MachineRates:
        sizes = {bytes_per_pass(one) for one in reads.values()}
        rows = {PEAK_ROWS, *(rows_per_pass(one) for one in reads.values())}
        return MachineRates(
            read_bandwidth(MAIN_MEMORY_BYTES, self.device, self.clock),
            {size: read_bandwidth(size, self.device, self.clock) for size in sorted(sizes)},
            {number: matrix_rate(number, self.dtype, self.device, self.clock) for number in sorted(rows)},
        )

    def _run_rounds(
        self, cases: Mapping[tuple[str, str], Case], talkers: Mapping[str, Talker], start: float
    ) -> dict[str, dict[str, float]]:
        """Time replies round by round; give the medians of the stages of the first chunk, in ms, by case."""
        stages_ms: dict[str, dict[str, list[float]]] = {case.name: {} for case in cases.values()}
        for turn in tqdm(range(self.num_rounds), "rounds", unit="round"):
            if turn >= self.min_rounds and time.perf_counter() - start > self.time_budget_s:
                break
            taken: dict[tuple[int, int], dict[str, float]] = {}
            for key in order_of_turn(list(cases), turn):
                case = cases[key]
                case.replies.append(case.speak(self.device, self.clock))
                own = {TALKER: 1000 * case.replies[-1].first_chunk_s}
                if self.first_chunk is not None:
                    talker = talkers[self.decodings[case.decoding].talker]
                    needs = num_text_tokens(talker, case.num_first_blocks), case.num_first_blocks * case.block_size
                    if needs not in taken:
                        codes = torch.zeros(needs[1], dtype=torch.int64, device=self.device)
                        taken[needs] = self.first_chunk.measure(needs[0], codes, self.clock)
                    own |= taken[needs]
                for stage, value in own.items():
                    stages_ms[case.name].setdefault(stage, []).append(value)
        return {
            name: {stage: spread_of(values).median for stage, values in own.items()} for name, own in stages_ms.items()
        }

    def _about(self, num_rounds: int, load_before: float, start: float) -> dict[str, Any]:
        is_gpu = self.device.type == "cuda"
        return {
            **describe_environment(),
            "processor": processor(),
            "device": torch.cuda.get_device_name(self.device) if is_gpu else "cpu",
            "threads": torch.get_num_threads(),
            "clock": self.clock,
            "dtype": str(self.dtype).removeprefix("torch."),
            "sizes": asdict(self.sizes),
            "decodings": {name: asdict(one) for name, one in self.decodings.items()},
            "executions": {name: repr(one) for name, one in self.executions.items()},
            "num_blocks": self.num_blocks,
            "num_rounds": num_rounds,
            "load": [load_before, os.getloadavg()[0]],
            "peak_memory_gb": peak_memory_gb(self.device),
            "seconds": time.perf_counter() - start,
        }
