"""Plans are pure, give every rank as much, and lose nothing that they should not lose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampling.batch_plan import plan_evaluation, plan_training

CORPORA = st.lists(st.integers(1, 99), min_size=4, max_size=200).map(np.array)


@given(lengths=CORPORA, batch_size=st.integers(1, 9), world_size=st.integers(1, 4), epoch=st.integers(0, 3))
def test_ranks_train_on_disjoint_shards_in_equally_many_equal_batches(
    lengths: np.ndarray, batch_size: int, world_size: int, epoch: int
) -> None:
    plans = [plan_training(lengths, batch_size, 0, epoch, rank, world_size) for rank in range(world_size)]
    assert len({len(plan) for plan in plans}) == 1
    sizes = {len(batch) for plan in plans for batch in plan}
    assert sizes == {min(batch_size, len(lengths) // world_size)}
    used = [index for plan in plans for batch in plan for index in batch]
    assert len(used) == len(set(used))
    assert set(used) <= set(range(len(lengths)))
    assert len(lengths) - len(used) < sizes.pop() * world_size


@given(lengths=CORPORA, seed=st.integers(0, 9))
def test_plans_depend_on_seed_and_epoch_only(lengths: np.ndarray, seed: int) -> None:
    assert plan_training(lengths, 4, seed, 2) == plan_training(lengths.copy(), 4, seed, 2)


def test_epochs_and_seeds_shuffle_differently() -> None:
    lengths = np.arange(100)
    plans = [plan_training(lengths, 4, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(plan) for plan in plans}) == 4


def test_sorting_by_length_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 100, 1000)
    padded = sum(lengths[batch].max() * len(batch) for batch in plan_training(lengths, 10, 0, 0))
    assert padded < 1.1 * lengths.sum()


def test_batches_are_not_in_order_of_length() -> None:
    lengths = np.arange(1000)
    means = [lengths[batch].mean() for batch in plan_training(lengths, 10, 0, 0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@given(count=st.integers(1, 100), batch_size=st.integers(1, 9), world_size=st.integers(1, 4))
def test_evaluation_sees_every_example_once_in_as_many_batches_on_each_rank(
    count: int, batch_size: int, world_size: int
) -> None:
    try:
        plans = [plan_evaluation(count, batch_size, rank, world_size) for rank in range(world_size)]
    except ValueError as error:
        assert count < world_size or "unequal" in str(error)
        return
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(index for plan in plans for batch in plan for index in batch) == list(range(count))
    assert all(0 < len(batch) <= batch_size for plan in plans for batch in plan)


def test_one_device_evaluates_in_the_order_of_the_corpus() -> None:
    assert plan_evaluation(5, 2) == [[0, 1], [2, 3], [4]]


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer devices or more examples"):
        plan_training(np.ones(2), 4, 0, 0, rank=0, world_size=3)
    with pytest.raises(ValueError, match="fewer devices or more examples"):
        plan_evaluation(2, 4, rank=0, world_size=3)
