"""What a machine can do at best: bytes read per second, and matrix products per second."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from experiments.engine.environment import describe_environment
from lightning_modules.errors import UserError

# Seconds that pass, or those that this process computes, which on a shared machine count what others leave to it.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}
DEVICES = ("auto", "cpu", "cuda")
MAIN_MEMORY_BYTES = 2**29
MEASURED_S = 0.15
CACHED_WIDTH = 512


def processor() -> str:
    """Give the model of the processor, as Linux names it, and its number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def find_device(name: str = "auto") -> torch.device:
    """Give a device by one of `DEVICES`; "auto" is a GPU where there is one.

    Raises:
        UserError: If the name is another one.
    """
    if name not in DEVICES:
        raise UserError(f"device is {name!r}; choose one of {', '.join(DEVICES)}")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def check_clock(clock: str, device: torch.device) -> None:
    """Refuse a clock that is unknown, or does not count what a device computes.

    Raises:
        UserError: If it is such a one.
    """
    if clock not in CLOCKS:
        raise UserError(f"clock is {clock!r}; choose one of {', '.join(CLOCKS)}")
    if clock == "process" and device.type == "cuda":
        raise UserError("clock is 'process', which does not count what a GPU computes; leave it at 'wall'")


def describe_conditions(device: torch.device, clock: str, load_before: float, start_s: float) -> dict[str, Any]:
    """Say under what conditions something was measured.

    Args:
        device: Where.
        clock: One of `CLOCKS`.
        load_before: The machine's load when it began.
        start_s: When that was, by :func:`time.perf_counter`.

    Returns:
        Commit, versions and machine, threads, clock, load before and after, seconds.
    """
    return {
        **describe_environment(),
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": clock,
        "load": [load_before, os.getloadavg()[0]],
        "seconds": time.perf_counter() - start_s,
    }


def wait_for(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def least_seconds(action: Callable[[], object], device: torch.device, clock: str) -> float:
    """Give the least seconds that an action takes, out of as many runs as fit into `MEASURED_S`, at least five.

    Args:
        action: What is measured.
        device: Where its work is done.
        clock: One of `CLOCKS`.

    Returns:
        Seconds of one run.
    """
    action()
    wait_for(device)
    now = CLOCKS[clock]
    best, end, num_runs = float("inf"), time.perf_counter() + MEASURED_S, 0
    while num_runs < 5 or time.perf_counter() < end:
        start = now()
        action()
        wait_for(device)
        best = min(best, now() - start)
        num_runs += 1
    return best


def read_bandwidth(num_bytes: int, device: torch.device, clock: str) -> float:
    """Measure how fast memory is read, by the fastest of three reductions over one buffer.

    The buffer is as large as what is read in practice, so that what stays in a cache there does so here.

    Args:
        num_bytes: Size of the buffer, rounded up to 64 kB.
        device: Whose memory; on a CPU it is read by PyTorch's present number of threads.
        clock: One of `CLOCKS`.

    Returns:
        Bytes per second.
    """
    buffer = torch.ones(-(-num_bytes // 2**16) * 2**14, device=device)
    actions = (buffer.sum, buffer.amax, lambda: torch.dot(buffer, buffer))
    return 4 * buffer.numel() / min(least_seconds(action, device, clock) for action in actions)


def matrix_rate(num_rows: int, dtype: torch.dtype, device: torch.device, clock: str) -> float:
    """Measure the products of so many rows with a weight that stays in the cache.

    Args:
        num_rows: Rows of the other factor.
        dtype: Precision of both.
        device: Where.
        clock: One of `CLOCKS`.

    Returns:
        Operations per second, two for each multiplication with its addition.
    """
    width = CACHED_WIDTH if device.type == "cpu" else 8 * CACHED_WIDTH
    weight = torch.randn(width, width, device=device).to(dtype)
    rows = torch.randn(num_rows, width, device=device).to(dtype)
    with torch.inference_mode():
        return 2 * num_rows * width**2 / least_seconds(lambda: F.linear(rows, weight), device, clock)
