"""Properties of unmasking and sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.unmasking import Unmasking, most_confident, num_to_reveal, within_entropy


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
    bound=st.sampled_from([None, 0.0, 1.0]),
)
def test_unmasking_fills_every_position_within_its_steps(
    length: int, num_steps: int, seed: int, threshold: float | None, bound: float | None
) -> None:
    rule = Unmasking(threshold, None if threshold is not None else bound)
    num_steps = min(num_steps, length)
    predictor = Predictor(2, length, seed, mask_id=9)
    generator = torch.Generator().manual_seed(seed)
    filling = rule(predictor, torch.full((2, length), 9), 9, num_steps, TokenSampler(), generator)
    tokens, num_taken, order = filling
    assert (tokens != 9).all() and tokens.shape == (2, length)
    assert num_taken == len(predictor.fillings) <= num_steps
    for step, partly in enumerate(predictor.fillings):
        assert torch.equal(partly == 9, order >= step), "a token is masked up to the step that reveals it"
    if not rule.is_adaptive:
        left = [int((filling == 9).sum(dim=1)[0]) for filling in predictor.fillings] + [0]
        assert num_taken == num_steps
        assert [a - b for a, b in zip(left, left[1:], strict=False)] == [
            num_to_reveal(count, num_steps - step) for step, count in enumerate(left[:-1])
        ]


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 12), seed=st.integers(0, 1000), bound=st.floats(0.0, 6.0))
def test_an_entropy_bound_takes_the_surest_positions_up_to_it(length: int, seed: int, bound: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(length, 6, generator=generator)
    is_masked = torch.rand(length, generator=generator) < 0.7
    chosen = within_entropy(logits, is_masked, bound)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    of_chosen, left = entropy[chosen].sort().values, entropy[is_masked & ~chosen]
    assert not (chosen & ~is_masked).any() and chosen.any() == is_masked.any()
    assert of_chosen[:-1].sum() <= bound + 1e-4, "the sum of the entropies less the largest"
    if len(left):
        assert left.min() >= of_chosen[-1] - 1e-5 and of_chosen.sum() > bound - 1e-4, "no further one would do"


def test_an_entropy_bound_stands_tokens_that_are_impossible() -> None:
    logits = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    assert within_entropy(logits, torch.tensor([True, True]), 0.0).tolist() == [True, True]
    assert within_entropy(logits.flip(0).repeat(2, 1), torch.tensor([True, False, True, True]), 0.5).tolist() == [
        True, False, False, True,
    ]  # fmt: skip


def test_a_threshold_saves_steps_where_the_network_is_sure() -> None:
    sure, masked = Predictor(1, 8, 0, 9), torch.full((1, 8), 9)
    sure.logits = 50 * sure.logits
    assert Unmasking(0.9)(sure, masked, 9, 8, TokenSampler())[1] == 1
    results = []
    for unmasking in (Unmasking(0.9), Unmasking()):
        unsure = Predictor(1, 8, 0, 9)
        unsure.logits = 0.01 * unsure.logits
        results.append((*unmasking(unsure, masked, 9, 8, TokenSampler()), unsure.fillings))
    (tokens, num_taken, _, fillings), (plain_tokens, _, _, plain_fillings) = results
    assert num_taken == 8
    assert torch.equal(tokens, plain_tokens), "below the threshold it is the paper's decoding"
    assert all(map(torch.equal, fillings, plain_fillings))


def test_impossible_unmasking_is_refused() -> None:
    for bad, message in (
        ({"confidence_threshold": 1.5}, "is 1.5"),
        ({"entropy_bound": -1.0}, "-1"),
        ({"entropy_bound": 1.0, "confidence_threshold": 0.5}, "give one"),
    ):
        with pytest.raises(ValueError, match=message):
            Unmasking(**bad)


def test_sampling_is_greedy_at_zero_and_seeded_above() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.7, 0.2]])).repeat(2000, 1)
    tokens, confidence = TokenSampler()(logits)
    assert (tokens == 1).all() and torch.allclose(confidence, torch.tensor(0.7))
    drawn, confidence = TokenSampler(1.0)(logits, torch.Generator().manual_seed(0))
    assert abs(float((drawn == 1).float().mean()) - 0.7) < 0.05
    torch.testing.assert_close(confidence, logits.exp().gather(1, drawn[:, None])[:, 0])
    with pytest.raises(ValueError, match="temperature"):
        TokenSampler(-1.0)
    few, generator = TokenSampler(5.0, top_k=2), torch.Generator().manual_seed(0)
    best_two = logits.topk(2, dim=-1).indices
    for _ in range(20):
        assert (few(logits, generator)[0][..., None] == best_two).any(dim=-1).all()
    with pytest.raises(ValueError, match="top_k is 0"):
        TokenSampler(1.0, top_k=0)
