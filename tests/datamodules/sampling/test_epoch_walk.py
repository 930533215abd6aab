"""A walk through the epochs resumes exactly where it was left, on any number of devices."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datamodules.sampling.epoch_plan import BatchBudget, draw_epoch
from datamodules.sampling.epoch_walk import EpochWalk

LENGTHS = np.random.default_rng(5).integers(4, 60, 200)
SETS = np.arange(200) % 2


def make_walk(world_size: int = 1, lengths: np.ndarray = LENGTHS, seed: int = 3, **budget: int) -> EpochWalk:
    sets = np.arange(len(lengths)) % 2
    return EpochWalk(sets, lengths, (1.0, 1.0), BatchBudget(**{"max_tokens": 240, **budget}), seed, world_size)


def walk_on(walk: EpochWalk, num_steps: int) -> list[tuple[int, list[int]]]:
    """Take steps; return the epoch and the examples of every batch on every rank."""
    ranks = [walk.batches(rank) for rank in range(walk.world_size)]
    taken = []
    for _ in range(num_steps):
        taken += [(epoch, batch.tolist()) for epoch, batch in (next(rank) for rank in ranks)]
        walk.advance()
    return taken


def test_epochs_follow_one_another_and_differ() -> None:
    walk = make_walk()
    first = walk.steps_of_epoch
    taken = walk_on(walk, first)
    assert walk.epoch == 1 and walk.position == 0
    assert Counter(sum((batch for _, batch in taken), [])) == Counter(range(200))
    assert {epoch for epoch, _ in taken} == {0}
    second = walk_on(walk, walk.steps_of_epoch)
    assert {epoch for epoch, _ in second} == {1}
    assert [batch for _, batch in second] != [batch for _, batch in taken]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=24, max_size=200),
    weights=st.lists(st.sampled_from([0.25, 1.0, 2.5]), min_size=1, max_size=3),
    world_size=st.integers(1, 4),
    max_tokens=st.integers(60, 500),
    max_examples=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_an_epoch_is_what_was_drawn_in_equal_steps_within_the_budget(
    lengths: list[int], weights: list[float], world_size: int, max_tokens: int, max_examples: int, seed: int
) -> None:
    set_of, tokens = np.arange(len(lengths)) % len(weights), np.array(lengths)
    query_s = np.random.default_rng(seed).uniform(0.3, 9.0, len(lengths))
    walk = EpochWalk(set_of, tokens, weights, BatchBudget(max_tokens, max_examples), seed, world_size, query_s)
    num_steps = walk.steps_of_epoch
    ranks = [list(itertools.islice(walk.batches(rank), num_steps)) for rank in range(world_size)]
    batches = [batch for of_rank in ranks for _, batch in of_rank]
    assert {epoch for of_rank in ranks for epoch, _ in of_rank} == {0}
    assert all(len(batch) and len(batch) <= max_examples for batch in batches)
    assert all(len(batch) * tokens[batch].max() <= max_tokens for batch in batches)
    handed_out = Counter(np.concatenate(batches).tolist())
    drawn = Counter(draw_epoch(set_of, weights, seed, 0).tolist())
    assert handed_out <= drawn, "as often as drawn, on one rank only"
    assert (drawn - handed_out).total() < world_size


@settings(max_examples=40, deadline=None)
@given(before=st.integers(0, 120), world_size=st.integers(1, 3), seed=st.integers(0, 5))
def test_a_resumed_walk_equals_the_one_that_was_not_stopped(before: int, world_size: int, seed: int) -> None:
    walk = make_walk(world_size, seed=seed)
    walk_on(walk, before)
    other = make_walk(world_size, seed=seed)
    other.load_state_dict(walk.state_dict())
    assert (other.epoch, other.position) == (walk.epoch, walk.position)
    assert walk_on(other, 60) == walk_on(walk, 60), "across an epoch's end too"


@settings(max_examples=60, deadline=None)
@example(stretches=[(1, 5), (2, 10), (1, 10), (8, 5)], last=1, max_examples=7)
@given(
    stretches=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 12)), min_size=1, max_size=5),
    last=st.integers(1, 8),
    max_examples=st.integers(1, 9),
)
def test_other_devices_in_the_middle_of_an_epoch_lose_and_repeat_nothing(
    stretches: list[tuple[int, int]], last: int, max_examples: int
) -> None:
    state, taken = None, []
    for world_size, num_steps in [*stretches, (last, 10_000)]:
        walk = make_walk(world_size, max_examples=max_examples)
        if state is not None:
            walk.load_state_dict(state)
        if walk.epoch == 0:  # what was left may be too little for more devices, which ends the epoch
            taken += walk_on(walk, min(num_steps, walk.steps_of_epoch - walk.position))
        state = walk.state_dict()
    assert walk.epoch == 1
    seen = Counter(itertools.chain.from_iterable(batch for epoch, batch in taken if epoch == 0))
    assert set(seen.values()) == {1}
    assert 200 - len(seen) < 8, "left out is only what does not give each device one more"


def test_weights_hold_over_epochs() -> None:
    drawn = [draw_epoch(SETS, (2.0, 0.25), 3, epoch) for epoch in range(4)]
    counts = Counter(np.concatenate(drawn).tolist())
    assert {counts[example] for example in np.flatnonzero(SETS == 0).tolist()} == {8}
    assert {counts[example] for example in np.flatnonzero(SETS == 1).tolist()} == {1}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (make_walk(seed=4), "seed was 3 and is 4"),
        (make_walk(max_tokens=300), "max_tokens was 240 and is 300"),
        (make_walk(lengths=LENGTHS + 1), "corpus was"),
        (make_walk(lengths=LENGTHS[:150]), "num_examples was 200 and is 150"),
    ],
)
def test_a_state_of_another_plan_is_refused_by_name(other: EpochWalk, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        other.load_state_dict(make_walk().state_dict())


def test_a_rest_too_small_for_more_devices_ends_the_epoch() -> None:
    walk = make_walk(lengths=LENGTHS[:6], max_examples=1)
    walk_on(walk, 5)
    other = make_walk(2, lengths=LENGTHS[:6], max_examples=1)
    other.load_state_dict(walk.state_dict())
    assert (other.epoch, other.position) == (1, 0)
