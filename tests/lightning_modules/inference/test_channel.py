"""Items get through a channel in their order, and nobody waits at one that was closed."""

import threading

import pytest

from lightning_modules.errors import UserError
from lightning_modules.inference.channel import Channel, ChannelClosed


def in_thread(action) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_who_gives_waits_for_room_and_an_error_comes_behind_the_items() -> None:
    channel: Channel[int] = Channel(2)
    given: list[int] = []

    def give() -> None:
        for number in range(5):
            channel.put(number)
            given.append(number)
        channel.finish(KeyError("five"))

    thread = in_thread(give)
    assert next(channel) == 0
    for number in range(1, 5):
        assert len(given) <= number + 2
        assert next(channel) == number
    with pytest.raises(KeyError, match="five"):
        next(channel)
    assert list(channel) == [], "an error is told once"
    thread.join(10)
    assert not thread.is_alive()


def test_a_closed_channel_lets_both_ends_go() -> None:
    full: Channel[int] = Channel(1)
    empty: Channel[int] = Channel(1)
    full.put(0)
    stopped: list[str] = []

    def attempt(name: str, action) -> None:
        try:
            action()
        except ChannelClosed:
            stopped.append(name)

    threads = [
        in_thread(lambda: attempt("put", lambda: full.put(1))),
        in_thread(lambda: attempt("get", lambda: next(empty))),
    ]
    for channel in (full, empty):
        channel.close()
    for thread in threads:
        thread.join(10)
    assert sorted(stopped) == ["get", "put"]
    with pytest.raises(UserError, match="capacity is 0"):
        Channel(0)
