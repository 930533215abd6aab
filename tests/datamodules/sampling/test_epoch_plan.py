"""Plans of epochs: disjoint, complete, equal steps, within the budget, for any corpus."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.sampling.epoch_plan import POOL_STEPS, BatchBudget, Steps, draw_epoch, plan_steps

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)


def batches_of(steps: Steps) -> list[list[int]]:
    return [steps.batch(step, rank).tolist() for step in range(len(steps)) for rank in range(steps.world_size)]


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    max_tokens=st.none() | st.integers(60, 500),
    max_examples=st.integers(1, 20),
    world_size=st.integers(1, 8),
    seed=st.integers(0, 99),
    has_second=st.booleans(),
)
def test_every_example_is_in_one_batch_and_every_rank_has_one_in_every_step(
    lengths: list[int], max_tokens: int, max_examples: int, world_size: int, seed: int, has_second: bool
) -> None:
    all_lengths = np.array(lengths)
    examples = np.random.default_rng(seed).permutation(len(lengths))
    second = np.random.default_rng(seed).uniform(0, 9, len(lengths)) if has_second else None
    budget = BatchBudget(max_tokens, max_examples)
    if len(lengths) < world_size:
        with pytest.raises(ValueError, match="use fewer devices"):
            plan_steps(examples, all_lengths, budget, world_size, [seed])
        return
    steps = plan_steps(examples, all_lengths, budget, world_size, [seed], second)
    batches = batches_of(steps)
    assert Counter(sum(batches, [])) + Counter(steps.left_out.tolist()) == Counter(range(len(lengths)))
    assert len(batches) == len(steps) * world_size and all(batches)
    num_pools = 1 if max_tokens else -(-len(lengths) // (max_examples * world_size * POOL_STEPS))
    assert len(steps.left_out) <= num_pools * (world_size - 1)
    assert not len(steps.left_out) or all(len(batch) == 1 for batch in batches)
    for batch in batches:
        assert len(batch) <= max_examples
        assert max_tokens is None or len(batch) * all_lengths[batch].max() <= max_tokens
    for step in range(len(steps) + 1):
        after = steps.examples_from(step).tolist()
        before = steps.members[: len(steps.members) - len(after)].tolist()
        assert before == sum(batches[: step * world_size], []) and after == sum(batches[step * world_size :], [])


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.0, 0.25, 0.3, 1.0, 2.5]), min_size=4, max_size=4),
    num_epochs=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_over_epochs_the_examples_of_a_set_come_equally_often(
    sizes: list[int], weights: list[float], num_epochs: int, seed: int
) -> None:
    set_of = np.repeat(np.arange(len(sizes)), sizes)
    weights = weights[: len(sizes)]
    if all(round(size * weight) == 0 for size, weight in zip(sizes, weights, strict=True)):
        return
    drawn: Counter[int] = Counter()
    for epoch in range(num_epochs):
        try:
            drawn.update(draw_epoch(set_of, weights, seed, epoch).tolist())
        except ValueError as error:
            assert "no example is drawn" in str(error)
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        counts = [drawn[index] for index in np.flatnonzero(set_of == number).tolist()]
        assert sum(counts) == round(size * weight * num_epochs)
        assert not counts or max(counts) - min(counts) <= 1, "none waits for its turn while another has two"


@given(
    count=st.integers(1, 300), max_examples=st.integers(2, 20), world_size=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_without_a_limit_of_tokens_all_batches_but_the_last_are_full(
    count: int, max_examples: int, world_size: int, seed: int
) -> None:
    if count < world_size:
        return
    examples = np.random.default_rng(seed).permutation(count)
    steps = plan_steps(examples, examples % 37, BatchBudget(None, max_examples), world_size, [seed])
    sizes = Counter(len(batch) for batch in batches_of(steps))
    rest = count - max_examples * sizes[max_examples]
    assert not len(steps.left_out) and rest < max_examples * world_size, "less than a step"


def test_batches_of_a_fixed_size_keep_it_and_hold_little_padding() -> None:
    """As many examples as the quickstart has: 450 batches of 16, sorted as well as before by size of their files."""
    lengths = np.random.default_rng(0).integers(25, 61, 7200)
    shares = []
    for epoch in range(3):
        examples = draw_epoch(np.zeros(7200, dtype=int), [1.0], 0, epoch)
        steps = plan_steps(examples, 128 + 4 * lengths, BatchBudget(None, 16), 1, [0, 3, epoch, 0])
        assert [len(batch) for batch in batches_of(steps)] == [16] * 450
        shares.append(padding(steps, lengths))
    assert max(shares) < 0.015


def test_batches_are_not_in_order_of_length() -> None:
    lengths = np.arange(1000)
    steps = plan_steps(np.random.default_rng(0).permutation(1000), lengths, BatchBudget(None, 10), 1, [0])
    means = [lengths[batch].mean() for batch in batches_of(steps)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@pytest.mark.parametrize("budget", [BatchBudget(2000), BatchBudget(None, 4)])
@pytest.mark.parametrize("second_lengths", [None, np.random.default_rng(1).uniform(1, 9, 500)])
def test_epochs_differ_and_repeat(second_lengths: np.ndarray | None, budget: BatchBudget) -> None:
    set_of, lengths = np.zeros(500, dtype=int), np.random.default_rng(0).integers(20, 200, 500)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        examples = draw_epoch(set_of, [1.0], seed, epoch)
        return batches_of(plan_steps(examples, lengths, budget, 2, [seed, epoch], second_lengths))

    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(0, 1) != plan(1, 1)
    met = [{frozenset(batch) for batch in plan(0, epoch)} for epoch in (0, 1)]
    assert len(met[0] & met[1]) < 0.1 * len(met[0]), "other examples meet in each epoch"


def test_the_whole_corpus_is_planned_in_seconds_and_with_little_padding() -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.2, 0.6, 730_000), 10, 2000).astype(int)
    start = time.perf_counter()
    query_s = np.clip(generator.lognormal(1.2, 0.5, 730_000), 0.5, 30.0)
    examples = draw_epoch(np.zeros(len(lengths), int), [1.0], 0, 0)
    steps = plan_steps(examples, lengths, BatchBudget(8000), 8, [0, 0], query_s)
    assert time.perf_counter() - start < 5.0
    assert len(steps.members) == len(lengths)
    assert padding(steps, lengths) < 0.05
    assert padding(steps, query_s) < 0.1
    assert padding(plan_steps(examples, lengths, BatchBudget(8000), 8, [0, 0]), query_s) > 0.3


def padding(steps: Steps, lengths: np.ndarray) -> float:
    own = lengths[steps.members]
    return 1 - own.sum() / (np.maximum.reduceat(own, steps.bounds[:-1]) * np.diff(steps.bounds)).sum()


@pytest.mark.parametrize(
    ("budget", "message"), [((0, 4), "max_tokens is 0"), ((50, 0), "max_examples is 0"), ((59, 4), "raise the budget")]
)
def test_impossible_budgets_are_refused(budget: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_steps(np.arange(3), np.array([10, 60, 20]), BatchBudget(*budget), 1, [0])


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="the weight -1"):
        draw_epoch(np.zeros(3, dtype=int), [-1.0], 0, 0)
    with pytest.raises(ValueError, match="no example is drawn"):
        draw_epoch(np.zeros(3, dtype=int), [0.0], 0, 0)
