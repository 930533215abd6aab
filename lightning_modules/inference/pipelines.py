"""How the stages of a reply are joined: one after the other, or each in a thread of its own, and on a GPU a stream."""

import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from lightning_modules.inference.channel import Channel, ChannelClosed
from lightning_modules.inference.clocks import AddedClock, Clock, WallClock
from lightning_modules.inference.surroundings import Surroundings, take_over
from lightning_modules.inference.timeline import THINKER
from lightning_modules.number_checks import require_at_least

_T = TypeVar("_T")


class Join(Protocol):
    """Puts a stage in front of the next one."""

    def __call__(self, stage: str, source: Iterator[_T]) -> Iterator[_T]:
        """Give what a stage, one of `STAGES`, makes."""
        ...


class Pipeline(Protocol):
    """A way to run the stages of a reply; all of them say the same."""

    def new_clock(self, start_s: float) -> Clock:
        """Make the clock of one reply, at so many seconds since the end of the query."""
        ...

    def open(self, device: torch.device) -> AbstractContextManager[Join]:
        """Begin one reply; nothing of it runs any more when the context ends."""
        ...


@dataclass(frozen=True)
class Sequential:
    """Each stage runs when the next one asks for its result: no two at the same time, so that their times add up."""

    def new_clock(self, start_s: float) -> Clock:
        """Add the times of stages up; see :class:`Pipeline`."""
        return AddedClock(start_s)

    @contextmanager
    def open(self, device: torch.device) -> Generator[Join]:
        """Join stages as they are; see :class:`Pipeline`."""
        yield lambda stage, source: source


@dataclass(frozen=True)
class Overlapped:
    """The thinker writes on while the talker decodes, and the vocoder works while the next block is decoded.

    Each stage has a thread, and on a GPU a stream: PyTorch releases the interpreter's lock inside its operators, and an
    event tells a stream when the input that it waits for is there. Items stay in their order and every stage gets what
    it would get alone, so that the reply is the one of :class:`Sequential`. An error comes behind the items before it.

    Attributes:
        text_ahead: Text tokens that the thinker may be ahead of the talker.
        blocks_ahead: Blocks that talker and vocoder may be ahead of who reads them.

    Raises:
        UserError: If a number is below 1.
    """

    text_ahead: int = 16
    blocks_ahead: int = 2

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least(1, text_ahead=self.text_ahead, blocks_ahead=self.blocks_ahead)

    def new_clock(self, start_s: float) -> Clock:
        """Let time pass; see :class:`Pipeline`."""
        return WallClock(start_s)

    @contextmanager
    def open(self, device: torch.device) -> Generator[Join]:
        """Start a thread for each stage that is joined, and end them all; see :class:`Pipeline`."""
        workers: list[_Worker] = []

        def join(stage: str, source: Iterator[_T]) -> Iterator[_T]:
            num_ahead = self.text_ahead if stage == THINKER else self.blocks_ahead
            worker = _Worker(stage, source, num_ahead, Surroundings(device))
            workers.append(worker)
            return worker

        try:
            yield join
        finally:
            for worker in workers:
                worker.channel.close()
            for worker in workers:
                worker.join()


class _Worker(Generic[_T], Iterator[_T]):
    """A thread that makes items ahead of who reads them.

    Args:
        name: Of the thread.
        source: What makes the items, from its first one on in the thread.
        num_ahead: Items that may wait.
        surroundings: Where the thread works.
    """

    def __init__(self, name: str, source: Iterator[_T], num_ahead: int, surroundings: Surroundings) -> None:
        self.channel: Channel[tuple[_T, Any]] = Channel(num_ahead)
        self._source, self._surroundings = source, surroundings
        # A reply that nobody closes must not keep the interpreter from its end.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __next__(self) -> _T:
        """Take the next item over."""
        item, event = next(self.channel)
        take_over(item, event)
        return item

    def join(self) -> None:
        """Wait for the end of the thread."""
        if self._thread is not threading.current_thread():  # which may be the one that clears the reply away
            self._thread.join()

    def _run(self) -> None:
        try:
            with self._surroundings.entered(), closing(_each(self._source)) as items:
                for item in items:
                    self.channel.put((item, self._surroundings.mark()))
        except ChannelClosed:
            pass
        except BaseException as error:
            self.channel.finish(error)
        else:
            self.channel.finish()


def _each(source: Iterator[_T]) -> Generator[_T]:
    """Give the items of a source; closing it closes the source, if that is a generator."""
    yield from source
