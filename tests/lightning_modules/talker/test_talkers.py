"""What holds for every talker: no leak of later text, batching, streaming, overfitting."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.autoregressive import AutoregressiveTalker
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.streaming import KnownTextState, states_of_row
from lightning_modules.talker.decoding.unmasking import Unmasking
from lightning_modules.talker.masked_diffusion import MaskedDiffusionTalker
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.set_block import SetBlockTalker
from tests.lightning_modules.talker.conftest import (
    NUM_CODES,
    in_steps,
    logits_of,
    make_talker,
    make_text,
    row_of,
)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(["ntp", "mtp", "mdm", "set_block"]), changed=st.integers(0, 7), seed=st.integers(0, 99))
def test_changing_a_text_token_changes_no_block_before_its_own(kind: str, changed: int, seed: int) -> None:
    talker = make_talker(kind)
    text = make_text([8], seed)
    tokens = torch.randint(0, NUM_CODES, (1, 40), generator=torch.Generator().manual_seed(seed))
    before = logits_of(talker, text, tokens)
    hidden = text.hidden.clone()
    hidden[0, changed] += 1.0
    after = logits_of(talker, TextStates(hidden, text.embedding, text.lengths), tokens)
    own_block = changed // 2
    first = own_block * talker.block_size
    torch.testing.assert_close(after[:, :first], before[:, :first], rtol=0, atol=0)
    is_changed = (after - before).abs().amax(-1)[0] > 1e-6
    assert is_changed[first : first + talker.block_size].all(), "every position of the anchor's block sees it"


def test_the_first_token_of_a_block_sees_all_its_anchors_and_none_of_the_next(talker: AnchoredTalker) -> None:
    text = make_text([6])
    tokens = torch.zeros(1, 24, dtype=torch.int64)
    hidden = text.hidden.clone().requires_grad_()
    logits = logits_of(talker, TextStates(hidden, text.embedding, text.lengths), tokens)
    (gradient,) = torch.autograd.grad(logits[0, talker.block_size].square().sum(), hidden)
    influence = gradient.abs().sum(-1)[0] > 0
    assert influence.tolist() == [True] * 4 + [False] * 2


def test_a_row_of_a_batch_equals_the_row_alone(talker: AnchoredTalker) -> None:
    text = make_text([5, 2, 9])
    units = torch.randint(0, NUM_CODES, (3, 30), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([30, 7, 16])
    batch = talker.lay_out(units, lengths)
    logits = logits_of(talker, text, batch.x_0)
    for row in range(3):
        alone = talker.lay_out(units[row : row + 1, : lengths[row]], lengths[row : row + 1])
        expected = logits_of(talker, row_of(text, row), alone.x_0)
        torch.testing.assert_close(logits[row : row + 1, : expected.shape[1]], expected, rtol=1e-4, atol=1e-5)


def test_streaming_pulls_no_more_text_than_the_block_may_see(any_talker: Talker) -> None:
    pulled = 0

    def write() -> Iterator[KnownTextState]:
        nonlocal pulled
        for state in states_of_row(make_text([20]), 0):
            pulled += 1
            yield state

    pulled_at_chunk = []
    for _ in any_talker.stream(write(), 4, in_steps()):
        pulled_at_chunk.append(pulled)
    assert pulled_at_chunk == [2, 4, 6, 8][: len(pulled_at_chunk)]
    assert len(pulled_at_chunk) >= 1


def overfit(talker: Talker, text: TextStates, units: Tensor, lengths: Tensor, num_steps: int) -> float:
    talker.train()
    optimizer = torch.optim.AdamW(talker.parameters(), lr=4e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        loss = talker(text, units, lengths, generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    talker.eval()
    return float(loss.detach())


@pytest.mark.parametrize(
    ("kind", "num_steps"), [("ntp", (8,)), ("mtp", (8, 4, 3, 2)), ("mdm", (8, 4, 2, 1)), ("set_block", (8, 4, 2, 1))]
)
def test_a_talker_overfits_a_batch_and_streams_it_back(kind: str, num_steps: tuple[int, ...]) -> None:
    talker = make_talker(kind)
    text = make_text([6, 3, 5], seed=3)
    lengths = torch.tensor([21, 8, 15])
    units = torch.randint(0, NUM_CODES, (3, 21), generator=torch.Generator().manual_seed(2))
    overfit(talker, text, units, lengths, 220 if kind in ("ntp", "mtp") else 450)
    for steps in num_steps:
        for row in range(3):
            chunks = list(talker.stream(states_of_row(text, row), 6, in_steps(steps)))
            spoken = torch.cat([chunk.tokens for chunk in chunks])
            assert spoken.tolist() == units[row, : lengths[row]].tolist(), (steps, row)
            assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
            assert chunks[-1].ended
            assert sum(chunk.num_forwards for chunk in chunks[:-1]) == steps * (len(chunks) - 1)
            for chunk in chunks:
                if isinstance(talker, AutoregressiveTalker) and not isinstance(talker, SetBlockTalker):
                    assert chunk.order is None
                else:
                    assert chunk.order is not None and len(chunk.order) == len(chunk.tokens)
                    assert set(chunk.order.tolist()) <= set(range(steps))


class NeverEnds(TokenSampler):
    def __call__(self, logits: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return super().__call__(logits[..., :NUM_CODES], generator)


def test_speech_without_an_end_is_cut_off_and_said_to_be(any_talker: Talker) -> None:
    chunks = list(any_talker.stream(states_of_row(make_text([3]), 0), 3, in_steps(sampler=NeverEnds())))
    assert [len(chunk.tokens) for chunk in chunks] == [any_talker.block_size] * 3
    assert [chunk.is_last for chunk in chunks] == [False, False, True]
    assert not any(chunk.ended for chunk in chunks)


def test_initial_weights_come_from_the_generator_alone(any_talker: Talker) -> None:
    torch.manual_seed(1)
    any_talker.reset_parameters(torch.Generator().manual_seed(9))
    first = {name: value.clone() for name, value in any_talker.state_dict().items()}
    torch.manual_seed(2)
    torch.randn(3)
    any_talker.reset_parameters(torch.Generator().manual_seed(9))
    for name, value in any_talker.state_dict().items():
        assert torch.equal(first[name], value), name


def test_a_seed_repeats_what_is_drawn_and_another_one_does_not(any_talker: Talker) -> None:
    text = make_text([7])
    decodings = [in_steps(sampler=TokenSampler(2.0), seed=seed) for seed in (1, 1, 2)]
    spoken = [torch.cat([c.tokens for c in any_talker.stream(states_of_row(text, 0), 4, one)]) for one in decodings]
    assert spoken[0].tolist() == spoken[1].tolist() != spoken[2].tolist()


@pytest.mark.parametrize(
    ("kind", "rules", "message"),
    [
        ("ntp", {"unmasking": Unmasking(0.7)}, "leave unmasking and refinement out"),
        ("mtp", {"refinement": Refinement(1)}, "leave unmasking and refinement out"),
        ("mdm", {"num_steps": 8, "refinement": Refinement(1)}, "cannot refine what it drafts"),
    ],
)
def test_a_rule_that_a_talker_does_not_know_is_refused(kind: str, rules: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_talker(kind).check(in_steps(**rules))
    make_talker("set_block").check(in_steps(**rules))


def test_row_generators_score_a_row_alike_in_any_batch(any_talker: Talker) -> None:
    """Validation scores an example as it does alone, whatever it is padded with; means weigh by scored tokens."""
    text, lengths = make_text([5, 2, 9]), torch.tensor([20, 7, 30])
    units = torch.randint(0, NUM_CODES, (3, 30), generator=torch.Generator().manual_seed(1))
    seeds = (3, 4, 5)
    whole = any_talker(text, units, lengths, [torch.Generator().manual_seed(seed) for seed in seeds])
    total, count = 0.0, 0
    for row, seed in enumerate(seeds):
        own = units[row : row + 1, : lengths[row]], lengths[row : row + 1]
        alone = any_talker(row_of(text, row), *own, [torch.Generator().manual_seed(seed)])
        total += float(alone.nll) * int(alone.num_scored_tokens)
        count += int(alone.num_scored_tokens)
    assert count == int(whole.num_scored_tokens)
    assert float(whole.nll) == pytest.approx(total / count, rel=1e-5)


def test_an_unsupported_number_of_steps_is_refused(any_talker: Talker) -> None:
    with pytest.raises(ValueError, match="num_steps is 5"):
        list(any_talker.stream(states_of_row(make_text([3]), 0), 2, in_steps(5)))


def test_a_token_outside_the_codebook_is_refused(any_talker: Talker) -> None:
    with pytest.raises(ValueError, match="outside the codebook of 30 codes"):
        any_talker(make_text([3]), torch.tensor([[1, 30]]), torch.tensor([2]), torch.Generator())


@pytest.mark.parametrize("kind", ["mdm", "set_block"])
@pytest.mark.parametrize("clean_context", [True, False])
def test_complementary_copies_score_every_token_whatever_the_context(kind: str, clean_context: bool) -> None:
    talker = make_talker(kind)
    if isinstance(talker, MaskedDiffusionTalker):
        talker.clean_context = clean_context
    assert isinstance(talker, MaskedDiffusionTalker | SetBlockTalker)
    talker.num_noisy_copies, talker.complementary_masks = 2, True
    units = torch.randint(0, NUM_CODES, (3, 20), generator=torch.Generator().manual_seed(1))
    output = talker(make_text([5, 2, 9]), units, torch.tensor([20, 7, 16]), torch.Generator().manual_seed(0))
    assert int(output.num_scored_tokens) == 24 + 8 + 24
    assert float(output.masked_share) == 0.5
    assert output.loss.isfinite()


def test_noisy_copies_in_noisy_context_are_rows_of_their_own() -> None:
    talker = make_talker("mdm")
    assert isinstance(talker, MaskedDiffusionTalker)
    talker.clean_context = False
    text, lengths = make_text([5, 2]), torch.tensor([20, 7])
    units = torch.randint(0, NUM_CODES, (2, 20), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    each = [talker(text, units, lengths, generator) for _ in range(2)]
    talker.num_noisy_copies = 2
    both = talker(text, units, lengths, torch.Generator().manual_seed(0))
    total = sum(one.nll * one.num_scored_tokens for one in each)
    torch.testing.assert_close(both.nll * both.num_scored_tokens, total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_copies", "complementary"), [(0, False), (1, True), (3, True)])
def test_copies_that_cannot_be_drawn_are_refused(num_copies: int, complementary: bool) -> None:
    whole = make_talker("mdm")
    assert isinstance(whole, MaskedDiffusionTalker)
    with pytest.raises(ValueError, match=f"num_noisy_copies is {num_copies}"):
        MaskedDiffusionTalker(
            NUM_CODES, whole.anchors, whole.backbone, whole.masking, 8, True, num_copies, complementary
        )


def test_anchors_of_another_width_are_refused() -> None:
    whole = make_talker("ntp")
    with pytest.raises(UserError, match="anchors are 32 wide, the backbone 16"):
        AutoregressiveTalker(NUM_CODES, whole.anchors, TalkerBackbone(16, 1, 2), 8)
