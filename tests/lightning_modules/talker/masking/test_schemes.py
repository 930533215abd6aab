"""Properties of blocks, masks, losses and unmasking."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.talker.blocks import lay_out_in_blocks
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.unmasking import Unmasking, most_confident, num_to_reveal
from lightning_modules.talker.losses import masked_cross_entropy
from lightning_modules.talker.masking.schemes import (
    BlockBernoulli,
    GlobalBernoulli,
    HierarchicalBlockwise,
    draw_copies,
)
from lightning_modules.talker.network.anchors import count_text_overflow
from lightning_modules.talker.vocabulary import SpeechVocabulary

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, block_size=st.integers(1, 16))
def test_blocks_hold_all_speech_then_eos_then_padding(lengths: list[int], block_size: int) -> None:
    vocabulary = SpeechVocabulary(20)
    units = torch.randint(0, 20, (len(lengths), max(lengths)))
    speech = lay_out_in_blocks(units, torch.tensor(lengths), vocabulary, block_size)
    assert speech.x_0.shape[1] % block_size == 0
    for row, length in enumerate(lengths):
        own = int(speech.num_own_blocks[row]) * block_size
        assert speech.x_0[row, :length].tolist() == units[row, :length].tolist()
        assert own > length and own - length <= block_size
        assert (speech.x_0[row, length:own] == vocabulary.eos_id).all()
        assert (speech.x_0[row, own:] == vocabulary.pad_id).all()
        assert speech.is_real[row].sum() == own
        assert speech.is_up_to_first_eos[row].sum() == length + 1


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
    antithetic=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_hierarchical_masks_respect_ranges_blocks_and_padding(
    lengths: list[int],
    block_size: int,
    block_ratio: tuple[float, float],
    token_ratio: tuple[float, float],
    antithetic: bool,
    seed: int,
) -> None:
    masking = HierarchicalBlockwise(block_ratio, token_ratio, antithetic)
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


@pytest.mark.parametrize("scheme", [GlobalBernoulli, BlockBernoulli])
def test_antithetic_ratios_mirror_each_other(scheme: type) -> None:
    is_real = torch.ones(6, 16 * 500, dtype=torch.bool)
    share = scheme(0.2, 0.9, antithetic=True)(is_real, 16, torch.Generator().manual_seed(3)).float()
    by_row = share.mean(1) if scheme is GlobalBernoulli else share.unflatten(1, (-1, 16)).mean(-1).mean(-1)
    torch.testing.assert_close(by_row[:3] + by_row[3:], torch.full((3,), 1.1), rtol=0, atol=0.04)


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


@settings(max_examples=60, deadline=None)
@given(num_masked=st.integers(1, 64), num_steps=st.integers(1, 64))
def test_steps_reveal_every_position_evenly(num_masked: int, num_steps: int) -> None:
    left, revealed = num_masked, []
    for step in range(num_steps):
        revealed.append(num_to_reveal(left, num_steps - step))
        left -= revealed[-1]
    assert left == 0
    assert max(revealed) - min(revealed) <= 1


@settings(max_examples=50, deadline=None)
@given(data=st.data(), length=st.integers(1, 12))
def test_the_most_confident_masked_positions_are_chosen(data: st.DataObject, length: int) -> None:
    confidence = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=length, max_size=length)))
    is_masked = torch.tensor(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    count = data.draw(st.integers(0, int(is_masked.sum())))
    chosen = most_confident(confidence, is_masked, count)
    assert chosen.sum() == count and not (chosen & ~is_masked).any()
    left = is_masked & ~chosen
    if chosen.any() and left.any():
        assert confidence[chosen].min() >= confidence[left].max()


class Predictor:
    """Fixed random logits, sharp enough for a threshold to matter; counts and checks its calls."""

    def __init__(self, rows: int, length: int, seed: int, mask_id: int) -> None:
        self.logits = 4 * torch.randn(rows, length, 6, generator=torch.Generator().manual_seed(seed))
        self.mask_id = mask_id
        self.fillings: list[Tensor] = []

    def __call__(self, tokens: Tensor) -> Tensor:
        if self.fillings:
            was_known = self.fillings[-1] != self.mask_id
            assert torch.equal(tokens[was_known], self.fillings[-1][was_known]), "a revealed token changed"
        self.fillings.append(tokens.clone())
        return self.logits


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 16),
    num_steps=st.integers(1, 16),
    seed=st.integers(0, 1000),
    threshold=st.sampled_from([None, 0.3, 0.9, 1.0]),
    order_temperature=st.sampled_from([0.0, 1.0]),
)
def test_unmasking_fills_every_position_within_its_steps(
    length: int, num_steps: int, seed: int, threshold: float | None, order_temperature: float
) -> None:
    num_steps = min(num_steps, length)
    predictor = Predictor(2, length, seed, mask_id=9)
    unmasking = Unmasking(threshold, order_temperature, generator=torch.Generator().manual_seed(seed))
    tokens, num_taken, order = unmasking(predictor, torch.full((2, length), 9), 9, num_steps)
    assert (tokens != 9).all() and tokens.shape == (2, length)
    assert num_taken == len(predictor.fillings) <= num_steps
    for step, filling in enumerate(predictor.fillings):
        assert torch.equal(filling == 9, order >= step), "a token is masked up to the step that reveals it"
    if threshold is None:
        left = [int((filling == 9).sum(dim=1)[0]) for filling in predictor.fillings] + [0]
        assert num_taken == num_steps
        assert [a - b for a, b in zip(left, left[1:], strict=False)] == [
            num_to_reveal(count, num_steps - step) for step, count in enumerate(left[:-1])
        ]


def test_a_threshold_saves_steps_where_the_network_is_sure() -> None:
    sure, masked = Predictor(1, 8, 0, 9), torch.full((1, 8), 9)
    sure.logits = 50 * sure.logits
    assert Unmasking(0.9)(sure, masked, 9, 8)[1] == 1
    results = []
    for unmasking in (Unmasking(0.9), Unmasking()):
        unsure = Predictor(1, 8, 0, 9)
        unsure.logits = 0.01 * unsure.logits
        results.append((*unmasking(unsure, masked, 9, 8), unsure.fillings))
    (tokens, num_taken, _, fillings), (plain_tokens, _, _, plain_fillings) = results
    assert num_taken == 8
    assert torch.equal(tokens, plain_tokens), "below the threshold it is the paper's decoding"
    assert all(map(torch.equal, fillings, plain_fillings))


def test_noise_changes_the_order_and_a_seed_repeats_it() -> None:
    def fillings(order_temperature: float, seed: int) -> list[Tensor]:
        predictor = Predictor(1, 8, 0, 9)
        generator = torch.Generator().manual_seed(seed)
        Unmasking(order_temperature=order_temperature, generator=generator)(predictor, torch.full((1, 8), 9), 9, 8)
        return predictor.fillings

    plain, noisy, again, other = fillings(0.0, 0), fillings(5.0, 0), fillings(5.0, 0), fillings(5.0, 1)
    assert all(map(torch.equal, noisy, again))
    assert not all(map(torch.equal, plain, noisy)) and not all(map(torch.equal, noisy, other))


def test_impossible_unmasking_is_refused() -> None:
    for bad, message in (({"confidence_threshold": 1.5}, "is 1.5"), ({"order_temperature": -1.0}, "is -1.0")):
        with pytest.raises(ValueError, match=message):
            Unmasking(**bad)


def test_loss_reads_scored_positions_only() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([[1, 2, 99], [99, 0, 4]])
    is_scored = targets < 5
    loss, _ = masked_cross_entropy(lambda hidden: hidden, logits, targets, is_scored)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[~is_scored] == 0).all() and (gradient[is_scored] != 0).any()
    nothing, _ = masked_cross_entropy(lambda hidden: hidden, logits, targets, torch.zeros_like(is_scored))
    assert nothing == 0 and nothing.requires_grad


def test_text_that_no_anchor_carries_is_counted() -> None:
    overflow = count_text_overflow(torch.tensor([8, 9, 1]), torch.tensor([2, 2, 1]), 4)
    assert overflow.tolist() == [0, 1, 0]


def test_sampling_is_greedy_at_zero_and_seeded_above() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.7, 0.2]])).repeat(2000, 1)
    tokens, confidence = TokenSampler()(logits)
    assert (tokens == 1).all() and torch.allclose(confidence, torch.tensor(0.7))
    drawn, confidence = TokenSampler(1.0, torch.Generator().manual_seed(0))(logits)
    assert abs(float((drawn == 1).float().mean()) - 0.7) < 0.05
    torch.testing.assert_close(confidence, logits.exp().gather(1, drawn[:, None])[:, 0])
    with pytest.raises(ValueError, match="temperature"):
        TokenSampler(-1.0)
    few = TokenSampler(5.0, torch.Generator().manual_seed(0), top_k=2)
    best_two = logits.topk(2, dim=-1).indices
    for _ in range(20):
        assert (few(logits)[0][..., None] == best_two).any(dim=-1).all()
    with pytest.raises(ValueError, match="top_k is 0"):
        TokenSampler(1.0, top_k=0)
