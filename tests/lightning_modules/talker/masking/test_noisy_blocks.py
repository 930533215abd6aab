"""Properties of noisy blocks that are drawn one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.talker.masking.noisy_blocks import DrawnBlocks
from lightning_modules.talker.masking.schemes import BlockBernoulli

SIZE = 4
OWN_BLOCKS = st.lists(st.integers(1, 6), min_size=1, max_size=5)
SHARES = st.floats(0, 1)
SEEDS = st.integers(0, 1000)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=80, deadline=None)
@given(own=OWN_BLOCKS, num=st.integers(1, 8), off_grid=SHARES, full=SHARES, seed=SEEDS)
def test_blocks_stay_in_their_reply_and_repeat_with_the_seed(
    own: list[int], num: int, off_grid: float, full: float, seed: int
) -> None:
    draw, masking = DrawnBlocks(num, off_grid, full), BlockBernoulli(0.2, 0.9)
    drawn, again = (draw(torch.tensor(own), SIZE, masking, seeded(seed)) for _ in range(2))
    assert torch.equal(drawn.starts, again.starts) and torch.equal(drawn.is_masked, again.is_masked)
    assert drawn.starts.shape == (len(own), num) and drawn.is_masked.shape == (len(own), num * SIZE)
    positions = drawn.positions(SIZE)
    assert (positions >= 0).all() and (positions < SIZE * torch.tensor(own)[:, None]).all()
    if off_grid == 0:
        assert (drawn.starts % SIZE == 0).all()


@settings(max_examples=80, deadline=None)
@given(own=OWN_BLOCKS, num=st.integers(1, 12), seed=SEEDS)
def test_each_block_is_drawn_as_often_as_any_other_but_for_less_than_one(own: list[int], num: int, seed: int) -> None:
    drawn = DrawnBlocks(num)(torch.tensor(own), SIZE, BlockBernoulli(), seeded(seed))
    for num_blocks, starts in zip(own, drawn.starts, strict=True):
        counts = (starts // SIZE).bincount(minlength=num_blocks)
        assert ((counts - num / num_blocks).abs() < 1 + 1e-4).all()


def test_the_mean_over_draws_is_what_the_shares_say() -> None:
    draw, generator = DrawnBlocks(4, off_grid_share=0.5, fully_masked_share=0.4), seeded(0)
    drawn = draw(torch.full((4000,), 3), SIZE, BlockBernoulli(0.5, 0.5), generator)
    shares = (drawn.starts // SIZE).flatten().bincount() / drawn.starts.numel()
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.01)
    is_last = drawn.starts // SIZE == 2
    assert (drawn.starts[is_last] % SIZE == 0).all(), "behind the last block there is nothing to predict"
    offsets = (drawn.starts[~is_last] % SIZE).bincount(minlength=SIZE) / (~is_last).sum()
    torch.testing.assert_close(offsets, torch.tensor([3, 1, 1, 1]) / 6, rtol=0, atol=0.02)
    is_full = drawn.is_masked.unflatten(1, (-1, SIZE)).all(dim=-1).float().mean()
    assert float(is_full) == pytest.approx(0.4 + 0.6 / 2**SIZE, abs=0.02)


def test_a_generator_per_row_draws_a_row_alike_in_any_batch() -> None:
    draw, own = DrawnBlocks(5, 0.3, 0.2), torch.tensor([2, 5, 1])
    together = draw(own, SIZE, BlockBernoulli(), [seeded(row) for row in range(3)])
    for row in range(3):
        alone = draw(own[row : row + 1], SIZE, BlockBernoulli(), [seeded(row)])
        assert torch.equal(alone.starts[0], together.starts[row])
        assert torch.equal(alone.is_masked[0], together.is_masked[row])


def test_blocks_of_one_token_have_no_places_off_the_grid() -> None:
    drawn = DrawnBlocks(3, off_grid_share=1.0)(torch.tensor([4]), 1, BlockBernoulli(1.0, 1.0), seeded(0))
    assert ((drawn.starts >= 0) & (drawn.starts < 4)).all() and drawn.is_masked.all()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("num_blocks", 0), ("off_grid_share", 1.5), ("fully_masked_share", -0.1)],
)
def test_numbers_out_of_range_are_refused(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=argument):
        DrawnBlocks(**{"num_blocks": 4, argument: value})
