"""Tests of starting without garbage collection."""

import gc

import pytest

from callbacks.runtime.garbage import no_garbage_collection


@pytest.fixture
def phases():
    seen: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        seen.append(phase)

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_nothing_is_collected_inside(phases):
    with no_garbage_collection():
        phases.clear()
        made = [[number] for number in range(100_000)]
        assert not phases and len(made) == 100_000
    made = [[number] for number in range(100_000)]
    assert phases


def test_collection_is_as_before_even_behind_a_mistake():
    with pytest.raises(ValueError), no_garbage_collection():
        raise ValueError
    assert gc.isenabled()
    gc.disable()
    try:
        with no_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
