"""A fair queue: clients use the model one after the other, and each is told its place."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from lightning_modules.errors import UserError


class _Ticket:
    def __init__(self, tell_place: Callable[[int], None]) -> None:
        self.tell_place = tell_place
        self.place: int | None = None
        self.is_called = asyncio.get_running_loop().create_future()


class TurnQueue:
    """Gives the model to whoever waits longest.

    A client waits for one reply at a time, and with another one at the end of the queue, so that nobody gets a second
    reply before everybody who waits has had one.

    Args:
        max_waiting: Clients that may wait.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[_Ticket] = deque()
        self._current: _Ticket | None = None

    def __len__(self) -> int:
        """Return how many wait or are served."""
        return len(self._waiting) + (self._current is not None)

    @asynccontextmanager
    async def turn(self, tell_place: Callable[[int], None]) -> AsyncIterator[None]:
        """Wait for the model, and hold it within this context.

        Args:
            tell_place: Called with 1 for the next one to be served, and so on, whenever it changes; not at all if there
                is nothing to wait for.

        Raises:
            UserError: If too many wait.
        """
        if len(self._waiting) >= self._max_waiting:
            raise UserError(f"{len(self._waiting)} others are waiting; ask again later")
        ticket = _Ticket(tell_place)
        self._waiting.append(ticket)
        self._advance()
        try:
            await ticket.is_called
            yield
        finally:
            if self._current is ticket:
                self._current = None
            else:
                self._waiting.remove(ticket)
            self._advance()

    def _advance(self) -> None:
        if self._current is None and self._waiting:
            self._current = self._waiting.popleft()
            if not self._current.is_called.done():  # done if its client has gone in this moment; it leaves by itself
                self._current.is_called.set_result(None)
        for place, ticket in enumerate(self._waiting, start=1):
            if ticket.place != place:
                ticket.place = place
                ticket.tell_place(place)
