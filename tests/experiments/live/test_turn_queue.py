"""The queue in front of the model is fair, and whoever leaves it holds up nobody."""

import asyncio

import pytest

from experiments.live.turn_queue import TurnQueue
from lightning_modules.errors import UserError


def test_nobody_gets_a_second_turn_before_all_who_wait_have_had_one() -> None:
    served: list[str] = []
    places: dict[str, list[int]] = {name: [] for name in "abc"}

    async def client(queue: TurnQueue, name: str) -> None:
        for _ in range(2):
            async with queue.turn(places[name].append):
                served.append(name)
                await asyncio.sleep(0)

    async def all_of_them() -> int:
        queue = TurnQueue(max_waiting=8)
        await asyncio.gather(*(client(queue, name) for name in "abc"))
        return len(queue)

    assert asyncio.run(all_of_them()) == 0
    assert served == list("abcabc")
    assert places == {"a": [2, 1], "b": [1, 2, 1], "c": [2, 1, 2, 1]}, "each is told its place when it changes"


def test_whoever_leaves_the_queue_is_skipped() -> None:
    async def run() -> list[str]:
        queue, served, go = TurnQueue(max_waiting=8), [], asyncio.Event()

        async def client(name: str) -> None:
            async with queue.turn(lambda place: None):
                served.append(name)
                await go.wait()

        tasks = [asyncio.create_task(client(name)) for name in "abcd"]
        await asyncio.sleep(0)
        tasks[1].cancel()  # waits
        tasks[0].cancel()  # is served
        await asyncio.sleep(0)
        tasks[2].cancel()  # is called, and does not know yet
        go.set()
        await asyncio.wait(tasks)
        assert len(queue) == 0
        return served

    assert asyncio.run(run()) in (["a", "d"], ["a", "c", "d"])


def test_more_than_may_wait_are_sent_away() -> None:
    async def run() -> None:
        queue = TurnQueue(max_waiting=1)
        async with queue.turn(lambda place: None):
            waiting = asyncio.create_task(queue.turn(lambda place: None).__aenter__())
            await asyncio.sleep(0)
            with pytest.raises(UserError, match="1 others are waiting; ask again later"):
                await queue.turn(lambda place: None).__aenter__()
            waiting.cancel()
            await asyncio.wait([waiting])

    asyncio.run(run())
