"""Properties of masking schemes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.talker.blocks import lay_out_in_blocks
from lightning_modules.talker.masking.schemes import (
    BlockBernoulli,
    GlobalBernoulli,
    HierarchicalBlockwise,
    draw_copies,
)
from lightning_modules.talker.vocabulary import SpeechVocabulary

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 1000), low=st.floats(0, 1), span=st.floats(0, 1), by_block=st.booleans())
def test_masks_keep_to_real_positions_and_repeat_with_the_seed(
    lengths: list[int], seed: int, low: float, span: float, by_block: bool
) -> None:
    high = min(1.0, max(low + span, 0.01))
    masking = (BlockBernoulli if by_block else GlobalBernoulli)(min(low, high), high)
    units = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    speech = lay_out_in_blocks(units, torch.tensor(lengths), SpeechVocabulary(20), 4)
    masks = [masking(speech.is_real, 4, torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert torch.equal(*masks)
    assert not (masks[0] & ~speech.is_real).any()


RANGES = st.tuples(st.floats(0, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair)))


@settings(max_examples=80, deadline=None)
@given(
    lengths=LENGTHS,
    block_size=st.integers(1, 16),
    block_ratio=RANGES,
    token_ratio=RANGES,
    seed=st.integers(0, 1000),
)
def test_hierarchical_masks_respect_ranges_blocks_and_padding(
    lengths: list[int],
    block_size: int,
    block_ratio: tuple[float, float],
    token_ratio: tuple[float, float],
    seed: int,
) -> None:
    masking = HierarchicalBlockwise(block_ratio, token_ratio)
    units = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    speech = lay_out_in_blocks(units, torch.tensor(lengths), SpeechVocabulary(20), block_size)
    mask = masking(speech.is_real, block_size, torch.Generator().manual_seed(seed))
    assert not (mask & ~speech.is_real).any()
    in_blocks = mask.unflatten(1, (-1, block_size)).sum(-1)
    for row, counts in enumerate(in_blocks.tolist()):
        num_blocks = int(speech.num_own_blocks[row])
        picked = [count for count in counts if count]
        low, high = (
            max(1, round(bound * num_blocks + shift)) for bound, shift in zip(block_ratio, (-1e-4, 1e-4), strict=True)
        )
        assert low <= len(picked) <= high
        low, high = (
            max(1, round(bound * block_size + shift)) for bound, shift in zip(token_ratio, (-1e-4, 1e-4), strict=True)
        )
        assert all(low <= count <= high for count in picked)


@pytest.mark.parametrize("ratio", [(0.5, 1.0, 0.7), (0.5,), (0.7, 0.5)])
def test_impossible_hierarchical_levels_are_refused(ratio: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="HierarchicalBlockwise token_ratio"):
        HierarchicalBlockwise(token_ratio=list(ratio))


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, num_pairs=st.integers(1, 3), seed=st.integers(0, 1000))
def test_complementary_copies_mask_every_real_position_once(lengths: list[int], num_pairs: int, seed: int) -> None:
    units = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    is_real = lay_out_in_blocks(units, torch.tensor(lengths), SpeechVocabulary(20), 4).is_real
    masks = draw_copies(BlockBernoulli(), is_real, 4, torch.Generator().manual_seed(seed), 2 * num_pairs, True)
    assert len(masks) == 2 * num_pairs
    for first, second in zip(masks[::2], masks[1::2], strict=True):
        assert torch.equal(first ^ second, is_real) and not (first & second).any()


def test_masking_ratios_stay_in_their_range_at_their_level() -> None:
    is_real = torch.ones(64, 16 * 400, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    share = GlobalBernoulli(0.3, 0.8)(is_real, 16, generator).float().mean(1)
    assert 0.27 < share.min() < 0.36 and 0.74 < share.max() < 0.83
    blocks = BlockBernoulli(0.3, 1.0)(is_real, 16, generator).float().unflatten(1, (-1, 16)).mean(-1)
    assert abs(float(blocks.mean()) - 0.65) < 0.01
    assert (blocks == 1).any() and blocks.std() > 0.2, "ratios differ from block to block"
    assert BlockBernoulli(1.0, 1.0)(is_real, 16, generator).all()


@pytest.mark.parametrize("bad", [(-0.1, 0.5), (0.6, 0.5), (0.5, 1.1), (0.0, 0.0)])
def test_impossible_ratios_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="low <= high"):
        GlobalBernoulli(*bad)
