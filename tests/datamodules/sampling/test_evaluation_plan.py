"""Plans of evaluations lose nothing and give every rank as many batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampling.evaluation_plan import plan_evaluation


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
        plan_evaluation(2, 4, rank=0, world_size=3)
