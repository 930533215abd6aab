"""The figures of a benchmark, computed from timed replies, counts, and what the machine can do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments.jobs.decoding.counting import Launches, Reads
from experiments.jobs.decoding.replies import Case, Reply
from experiments.jobs.decoding.statistics import Ratio, count_equal, paired_ratio, spread_of
from lightning_modules.errors import UserError

PEAK_ROWS = 256


@dataclass(frozen=True)
class MachineRates:
    """What was measured of the machine.

    Attributes:
        main_memory: Bytes per second out of main memory.
        read: Bytes per second out of a buffer as large as what a pass reads, by that size.
        matrix: Operations per second of matrix products, by number of rows; with `PEAK_ROWS` it is the peak.
    """

    main_memory: float
    read: Mapping[int, float]
    matrix: Mapping[int, float]

    def best_of(self, others: "MachineRates") -> "MachineRates":
        """Give the higher one of each rate that was measured twice."""
        read, matrix = (
            {key: max(value, its[key]) for key, value in own.items()}
            for own, its in ((self.read, others.read), (self.matrix, others.matrix))
        )
        return MachineRates(max(self.main_memory, others.main_memory), read, matrix)

    @property
    def peak(self) -> float:
        """The highest rate of matrix products."""
        return max(self.matrix.values())


def read_word_error_rates(file: Path) -> dict[str, float]:
    """Read the word error rates of a comparison, as shares, by decoding.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is no comparison's.
    """
    if not file.is_file():
        raise FileNotFoundError(f"quality: there is no file {file}; give the results.json of a comparison")
    try:
        return {row["name"]: float(row["wer_micro"]) for row in json.loads(file.read_text(encoding="utf-8"))}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"quality: {file} is not the results.json of a comparison ({error!r}); give one") from error


def bytes_per_pass(reads: Reads) -> int:
    """Give the bytes of weights per pass, rounded up to whole megabytes, by which read rates are kept."""
    return -(-reads.weight_bytes // reads.num_passes // 2**20) * 2**20


def rows_per_pass(reads: Reads) -> int:
    """Give the rows per pass as a whole number, by which rates of matrix products are kept."""
    return max(1, round(reads.rows_per_pass))


def figures_of(
    case: Case, cases: Mapping[tuple[str, str], Case], reads: Reads, launches: Launches, rates: MachineRates,
    frame_rate_hz: float, reference: str, baseline: str,
) -> dict[str, Any]:  # fmt: skip
    """Give all figures of one case.

    Args:
        case: What was measured.
        cases: All cases by decoding and execution.
        reads: What a block reads.
        launches: What a block asks of the device.
        rates: What the machine can do.
        frame_rate_hz: Speech tokens per second of audio.
        reference: The execution that others are held against.
        baseline: The decoding that others are held against.

    Returns:
        Spreads as median, 10th and 90th percentile; ratios as median and the ends of a 95 % interval.
    """
    seconds = [one.seconds for one in case.replies]
    per_second = spread_of([one.tokens_per_s for one in case.replies])
    passes = sum(one.num_passes for one in case.replies) / (len(case.replies) * case.num_blocks)
    block_s = spread_of(seconds).median / case.num_blocks
    floor_s = reads.weight_bytes / rates.read[bytes_per_pass(reads)]
    rate = reads.weight_operations / block_s
    others = {
        "against_reference": (case.decoding, reference),
        "against_baseline": (baseline, case.execution),
        "against_reference_baseline": (baseline, reference),
    }
    return {
        "decoding": case.decoding,
        "execution": case.execution,
        "tokens_per_s": per_second,
        "num_rounds": len(seconds),
        "rtf": frame_rate_hz / per_second.median,
        "passes_per_block": passes,
        "counted_passes_per_block": reads.num_passes,
        "tokens_per_pass": case.block_size / passes,
        "ms_per_pass": spread_of([1000 * one / (case.num_blocks * passes) for one in seconds]),
        "first_chunk_ms": spread_of([1000 * one.first_chunk_s for one in case.replies]),
        "weight_bytes_per_block": reads.weight_bytes,
        "share_of_bandwidth_floor": floor_s / block_s,
        "floor_tokens_per_s": case.block_size / floor_s,
        "operations_per_byte": reads.intensity,
        "rows_per_pass": reads.rows_per_pass,
        "share_of_matrix_peak": rate / rates.peak,
        "share_of_matrix_rate_at_these_rows": rate / rates.matrix[rows_per_pass(reads)],
        **{f"{name}_per_block": value for name, value in asdict(launches).items() if value is not None},
        "setup_s": case.setup_s,
        "peak_memory_gb": case.peak_memory_gb,
        **speed_ratios(case, cases, others),
        "same_tokens_as_reference": _share_of_same(case, cases.get((case.decoding, reference))),
        "rounds_s": seconds,
    }


class TimedCase(Protocol):
    """One decoding under one execution, timed round by round, or query by query."""

    decoding: str
    execution: str

    @property
    def replies(self) -> Sequence[Reply]:
        """The replies, in the order of rounds or queries."""
        ...


def speed_ratios(
    case: TimedCase, cases: Mapping[tuple[str, str], TimedCase], others: Mapping[str, tuple[str, str]]
) -> dict[str, Ratio | None]:
    """Give how many times as many tokens per second a case makes as others.

    Args:
        case: What was measured.
        cases: All cases by decoding and execution.
        others: Those that it is held against, by the name of the figure.

    Returns:
        The ratios by name; None against itself, and against a case that was not measured.
    """
    own = case.decoding, case.execution
    return {name: None if key == own else _ratio(case, cases.get(key)) for name, key in others.items()}


def _ratio(case: TimedCase, other: TimedCase | None) -> Ratio | None:
    """Compare two cases pair by pair."""
    if other is None or len(other.replies) != len(case.replies):
        return None
    own, its = ([reply.tokens_per_s for reply in one.replies] for one in (case, other))
    return paired_ratio(own, its)


def _share_of_same(case: Case, other: Case | None) -> float | None:
    if other is None:
        return None
    return count_equal(case.replies[0].tokens, other.replies[0].tokens) / case.num_tokens
