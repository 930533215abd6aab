"""Clocks of a reply, and iterators that write down when a stage was at work and how long it waited."""

import time
from collections.abc import Generator, Iterator
from typing import Generic, Protocol, TypeVar

import torch

from lightning_modules.inference.timeline import Timeline

_T = TypeVar("_T")


class StopWatch:
    """Reads the time when a device has done what this thread gave it to do.

    Args:
        device: Its kernels may run asynchronously.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Wait for this thread's stream alone, and give seconds."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter()


class Clock(Protocol):
    """Says where a piece of work lies in the time of a reply, whose zero is the end of the query."""

    def now(self) -> float:
        """Give the present moment in seconds."""
        ...

    def place(self, seconds: float) -> tuple[float, float]:
        """Give start and end of work that is done now and took so long."""
        ...

    def replay(self, seconds: float) -> tuple[float, float]:
        """Give start and end of work that was done before this reply, where it took so long."""
        ...


class AddedClock:
    """Adds up what stages take that work one after the other, so that a caller who waits between chunks does not count.

    Args:
        start_s: Seconds that were taken before.
    """

    def __init__(self, start_s: float) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """Give the sum so far."""
        return self._now_s

    def place(self, seconds: float) -> tuple[float, float]:
        """Put the work behind all others."""
        start_s, self._now_s = self._now_s, self._now_s + seconds
        return start_s, self._now_s

    def replay(self, seconds: float) -> tuple[float, float]:
        """Count the work as if it were done now."""
        return self.place(seconds)


class WallClock:
    """Runs on by itself, for stages that work at the same time.

    Args:
        start_s: Seconds that were taken before.
    """

    def __init__(self, start_s: float) -> None:
        self._zero_s = time.perf_counter() - start_s

    def now(self) -> float:
        """Give the seconds since the end of the query."""
        return time.perf_counter() - self._zero_s

    def place(self, seconds: float) -> tuple[float, float]:
        """Let the work end now."""
        end_s = self.now()
        return end_s - seconds, end_s

    def replay(self, seconds: float) -> tuple[float, float]:
        """Count the work as there at once: nobody knows what it would have overlapped with."""
        now_s = self.now()
        return now_s, now_s


class Waiting(Generic[_T], Iterator[_T]):
    """Counts items of a source, and the time that its reader waits for them.

    Args:
        source: Gives the items.
        watch: Reads the time.

    Attributes:
        num_items: Items so far.
        waited_s: Seconds that the reader waited so far.
    """

    def __init__(self, source: Iterator[_T], watch: StopWatch) -> None:
        self.source, self.watch = source, watch
        self.num_items, self.waited_s = 0, 0.0

    def __next__(self) -> _T:
        """Give the next item."""
        start_s = self.watch.now()
        try:
            item = next(self.source)
        finally:
            self.waited_s += self.watch.now() - start_s
        self.num_items += 1
        return item


class Timed(Generic[_T], Iterator[_T]):
    """Writes down when a stage was at work on each of its items, as if it had waited for its input first.

    Args:
        stage: Its name.
        source: What the stage makes.
        timeline: Where it is written down.
        clock: Places the work.
        watch: Reads the time.
        waits: What the stage reads; its waits are no work.
    """

    def __init__(
        self,
        stage: str,
        source: Iterator[_T],
        timeline: Timeline,
        clock: Clock,
        watch: StopWatch,
        waits: Waiting | None = None,
    ) -> None:
        self.stage, self.source, self.timeline = stage, source, timeline
        self.clock, self.watch, self.waits = clock, watch, waits
        self.num_items = 0

    def __next__(self) -> _T:
        """Give the next item."""
        waited_before_s = self._waited_s()
        start_s = self.watch.now()
        item = next(self.source)
        seconds = self.watch.now() - start_s - (self._waited_s() - waited_before_s)
        self.timeline.add(self.stage, self.num_items, self.clock.place(max(0.0, seconds)))
        self.num_items += 1
        return item

    def close(self) -> None:
        """Close the source, if that is a generator."""
        if isinstance(self.source, Generator):
            self.source.close()

    def _waited_s(self) -> float:
        return 0.0 if self.waits is None else self.waits.waited_s
