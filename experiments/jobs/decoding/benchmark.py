"""A job that measures how fast talkers decode, under each way to run them, against what the machine could do."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from callbacks.runtime.training_cost import peak_memory_gb
from experiments.engine.runs import write_json
from experiments.jobs.decoding.batches import BatchThroughput
from experiments.jobs.decoding.counting import Reads, count_launches, count_reads
from experiments.jobs.decoding.executions import Execution, Stepwise
from experiments.jobs.decoding.first_chunk import TALKER, FirstChunk
from experiments.jobs.decoding.machine import (
    MAIN_MEMORY_BYTES,
    check_clock,
    describe_conditions,
    find_device,
    matrix_rate,
    read_bandwidth,
)
from experiments.jobs.decoding.overlap import PipelineRounds
from experiments.jobs.decoding.plan import MIN_BLOCKS, Plan, TimeBudget, select
from experiments.jobs.decoding.replies import Case
from experiments.jobs.decoding.report.figures import (
    PEAK_ROWS,
    MachineRates,
    bytes_per_pass,
    figures_of,
    read_word_error_rates,
    rows_per_pass,
)
from experiments.jobs.decoding.report.report import write_report
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

DEFAULT_FRAME_RATE_HZ = 25.0


class DecodingBenchmark:
    """Decodes replies of fixed length with every decoding under every execution in turn, and times them.

    Weights are drawn, unless talkers are given; EOS is banned, see :func:`ban_eos`. After one reply of each that says
    how many rounds fit into the time come these rounds, each with one reply of each. All figures stand beside what the
    machine does at best, measured in the same run on the same number of threads.

    Args:
        decodings: Decodings by name; None leaves one out.
        executions: Ways to run them by name; the first one is what others are held against. None leaves one out.
        sizes: Of the talkers that are drawn; the quickstart's if None.
        talkers: Trained talkers by name, in place of drawn ones.
        dtype: Of the weights, "float32" or "bfloat16".
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        clock: "wall", or "process" for the seconds that this process computes: for one thread of a shared CPU.
        baseline: The decoding that others are held against.
        only_decodings: Names of those that are measured; all if None.
        only_executions: Likewise.
        num_blocks: Blocks of a reply, at most; at least 3.
        num_rounds: Timed replies of each, at most.
        min_rounds: Timed replies of each, at least.
        max_minutes: Time of the whole run, in which rounds become fewer, then replies shorter, until they fit.
        frame_rate_hz: Speech tokens per second of audio; the vocoder's if there is one, else 25.
        quality: `results.json` of a comparison, whose word error rates stand beside speeds of the same names.
        first_chunk: What else runs until the first samples; left out, the talker's part alone is shown.
        batches: Which decodings are measured with many replies at once; none if left out.
        pipelines: Which replies are spoken whole, their parts one after the other and at the same time, by the wall
            clock; none if left out. It needs ``first_chunk``.
        seed: Of weights and intervals.

    Raises:
        UserError: If a number is out of range, a name is unknown, a talker does not know a decoding, or the frame rate
            is not the vocoder's.
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
        only_decodings: Sequence[str] | None = None,
        only_executions: Sequence[str] | None = None,
        num_blocks: int = 6,
        num_rounds: int = 15,
        min_rounds: int = 3,
        max_minutes: float = 9.0,
        frame_rate_hz: float | None = None,
        quality: Path | None = None,
        first_chunk: FirstChunk | None = None,
        batches: BatchThroughput | None = None,
        pipelines: PipelineRounds | None = None,
        seed: int = 0,
    ) -> None:
        require_at_least(MIN_BLOCKS, num_blocks=num_blocks)
        require_at_least(1, num_rounds=num_rounds, min_rounds=min_rounds)
        require_at_least(0, seed=seed)
        require_positive(max_minutes=max_minutes, frame_rate_hz=frame_rate_hz)
        self.device = find_device(device)
        check_clock(clock, self.device)
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
        self.executions = select("executions", executions, only_executions)
        wanted = select("decodings", decodings, only_decodings)
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
        self.clock = clock
        self.dtype, self.seed, self.num_blocks = DTYPES[dtype], seed, num_blocks
        self.num_rounds, self.min_rounds, self.max_minutes = num_rounds, min(min_rounds, num_rounds), max_minutes
        self.quality, self.first_chunk = quality, first_chunk
        self.batches = batches if only_decodings is None or batches is None else batches.among(list(wanted))
        of_vocoder = None if first_chunk is None else first_chunk.vocoder.frame_rate_hz
        self.frame_rate_hz = frame_rate_hz or of_vocoder or DEFAULT_FRAME_RATE_HZ
        if of_vocoder not in (None, self.frame_rate_hz):
            raise UserError(f"frame_rate_hz is {frame_rate_hz}, the vocoder's {of_vocoder}; leave it out")
        self.pipelines = pipelines if clock == "wall" else None  # a process's seconds do not tell what overlaps

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `measured.json`, `summary.txt` and the pictures.

        Args:
            output_dir: The run directory.

        Returns:
            The median of the tokens per second of each case.

        Raises:
            FileNotFoundError: If there is no such file as `quality`.
            UserError: If it is no comparison's, a reply has another length than it should, or the time is too short.
        """
        output_dir, start = Path(output_dir), time.perf_counter()
        word_error_rates = None if self.quality is None else read_word_error_rates(self.quality)
        load_before = os.getloadavg()[0]
        talkers = self._talkers()
        if self.first_chunk is not None:
            self.first_chunk.move_to(self.device, self.dtype)
        budget, cases = self._prepare(talkers, start)
        reads = {name: self._count_reads(talkers[one.talker], one) for name, one in self.decodings.items()}
        launches = {key: count_launches(case.stream, self.device) for key, case in cases.items()}
        before = time.perf_counter()
        rates = self._measure_machine(reads)
        behind_s = (0.0 if one is None else one.time_budget_s for one in (self.batches, self.pipelines))
        reserved_s = time.perf_counter() - before + sum(behind_s)
        plan = budget.plan({case.name: case.block_s for case in cases.values()}, reserved_s)
        print(f"{plan} fit into max_minutes={self.max_minutes:g}", flush=True)
        first_chunk_ms = self._run_rounds(cases, talkers, plan, budget, reserved_s)
        rates = rates.best_of(self._measure_machine(reads))
        by_name = {
            one.name: figures_of(
                one, cases, reads[one.decoding], launches[key], rates, self.frame_rate_hz, self.reference, self.baseline
            )
            for key, one in cases.items()
        }
        throughput = {}
        if self.batches is not None:
            settings = self.decodings, self.executions, self.dtype, self.device, self.clock
            throughput = self.batches.measure(talkers, *settings)
        whole_replies = {}
        if self.pipelines is not None:
            whole_replies = self.pipelines.measure(self.first_chunk, list(cases.values()))
        about = self._about(cases, load_before, start) | {"planned": asdict(plan)}
        measured = {
            "about": about,
            "machine": asdict(rates),
            "first_chunk_ms": first_chunk_ms,
            "word_error_rates": word_error_rates,
            "tokens_per_s_of_batches": throughput,
            "whole_replies": whole_replies,
            "cases": by_name,
        }
        write_json(output_dir / "measured.json", measured)
        write_report(output_dir, measured, rates, self.baseline, self.reference)
        return {f"{name}/tokens_per_s": one["tokens_per_s"].median for name, one in by_name.items()}

    def _talkers(self) -> dict[str, Talker]:
        drawn = draw_talkers(self.sizes, self.drawn, self.dtype, self.device, self.seed)
        given = {name: talker.to(self.device, self.dtype).eval() for name, talker in self.given.items()}
        talkers = {**given, **drawn}
        ban_eos(talkers)
        return talkers

    def _prepare(self, talkers: Mapping[str, Talker], start_s: float) -> tuple[TimeBudget, dict[tuple[str, str], Case]]:
        """Prepare and warm up each case; those that an execution does not know are left out, with a line.

        What will not fit into the time is refused as soon as that is known.
        """
        cases: dict[tuple[str, str], Case] = {}
        settings = self.max_minutes, self.num_rounds, self.min_rounds, self.num_blocks
        budget = TimeBudget(*settings, MIN_BLOCKS, start_s)
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
                    budget = replace(budget, min_blocks=max(budget.min_blocks, case.num_first_blocks))
                case.warm_up(self.device)
                case.setup_s = time.perf_counter() - start
                cases[name, execution] = case
                budget.plan({case.name: case.block_s for case in cases.values()})
        return budget, cases

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
        self,
        cases: Mapping[tuple[str, str], Case],
        talkers: Mapping[str, Talker],
        plan: Plan,
        budget: TimeBudget,
        reserved_s: float,
    ) -> dict[str, dict[str, float]]:
        """Time replies round by round; give the medians of the stages of the first chunk, in ms, by case."""
        stages_ms: dict[str, dict[str, list[float]]] = {case.name: {} for case in cases.values()}
        for case in cases.values():
            case.num_blocks = plan.num_blocks
        longest_s = 0.0
        for turn in tqdm(range(plan.num_rounds), "rounds", unit="round"):
            if not budget.has_time_for(turn, longest_s, reserved_s):
                break
            start = time.perf_counter()
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
            longest_s = max(longest_s, time.perf_counter() - start)
        return {
            name: {stage: spread_of(values).median for stage, values in own.items()} for name, own in stages_ms.items()
        }

    def _about(self, cases: Mapping[tuple[str, str], Case], load_before: float, start: float) -> dict[str, Any]:
        some = next(iter(cases.values()))
        # On a GPU the count begins again at each reply, so that the last one's would be that of one row alone.
        peaks = [one.peak_memory_gb for one in cases.values() if one.peak_memory_gb is not None]
        return {
            **describe_conditions(self.device, self.clock, load_before, start),
            "dtype": str(self.dtype).removeprefix("torch."),
            "sizes": asdict(self.sizes),
            "decodings": {name: asdict(one) for name, one in self.decodings.items()},
            "executions": {name: repr(one) for name, one in self.executions.items()},
            "num_blocks": some.num_blocks,
            "num_rounds": len(some.replies),
            "max_minutes": self.max_minutes,
            "frame_rate_hz": self.frame_rate_hz,
            "peak_memory_gb": max([*peaks, peak_memory_gb(self.device)]),
        }
