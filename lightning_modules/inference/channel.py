"""A bounded queue between two threads that work on one reply."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from lightning_modules.number_checks import require_at_least

_T = TypeVar("_T")


class ChannelClosed(BaseException):
    """Nobody wants the reply any more; no error, and for no handler of errors."""


class Channel(Generic[_T], Iterator[_T]):
    """Passes items on in their order, then what ended them: nothing, or an error.

    Args:
        capacity: Items that may wait; who gives more waits itself.

    Raises:
        UserError: If the capacity is below 1.
    """

    def __init__(self, capacity: int) -> None:
        require_at_least(1, capacity=capacity)
        self.capacity = capacity
        self._items: deque[_T] = deque()
        self._changed = threading.Condition()
        self._is_finished = self._is_closed = False
        self._error: BaseException | None = None

    def put(self, item: _T) -> None:
        """Give an item, as soon as there is room for it.

        Raises:
            ChannelClosed: If nobody wants it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or len(self._items) < self.capacity)
            if self._is_closed:
                raise ChannelClosed
            self._items.append(item)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Say that no item follows; who reads gets the error, if there is one, behind the last item."""
        with self._changed:
            self._is_finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Let both ends stop, at once if they wait."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()

    def __next__(self) -> _T:
        """Take the next item, as soon as there is one.

        Raises:
            ChannelClosed: If the channel was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._is_finished or bool(self._items))
            if self._is_closed:
                raise ChannelClosed
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        raise error or StopIteration
