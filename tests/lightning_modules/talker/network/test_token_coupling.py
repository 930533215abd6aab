"""A coupling is a GRU through each block: it reads the past only, and learns what independent predictions cannot."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.network.token_coupling import TokenCoupling, coupled_logits
from tests.lightning_modules.talker.conftest import NUM_CODES, build_talker, in_steps, make_talker, make_text

WIDTH, SIZE, NUM_TOKENS, NUM_OUTPUTS, BEGIN, MASK = 5, 4, 9, 7, 7, 8


def make_coupling(seed: int = 0) -> TokenCoupling:
    torch.manual_seed(seed)
    return TokenCoupling(WIDTH, NUM_TOKENS, NUM_OUTPUTS, SIZE, BEGIN).double()


def inputs(block_size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, block_size, WIDTH, generator=generator, dtype=torch.float64)
    logits = torch.randn(3, block_size, NUM_OUTPUTS, generator=generator, dtype=torch.float64)
    return hidden, logits, torch.randint(NUM_OUTPUTS, (3, block_size), generator=generator)


def test_its_states_are_those_of_a_gru() -> None:
    coupling = make_coupling()
    hidden, _, tokens = inputs(6, 1)
    reference = nn.GRU(3 * SIZE, SIZE, batch_first=True).double()
    with torch.no_grad():
        reference.weight_ih_l0.copy_(torch.eye(3 * SIZE))
        reference.bias_ih_l0.zero_()
        reference.weight_hh_l0.copy_(coupling.recur.weight)
        reference.bias_hh_l0.copy_(coupling.recur.bias)
    before = torch.cat([torch.full((3, 1), BEGIN), tokens[:, :-1]], dim=1)
    expected, _ = reference(coupling.read(hidden) + coupling.embed(before))
    torch.testing.assert_close(coupling(hidden, tokens), expected)


@settings(max_examples=25, deadline=None)
@given(block_size=st.integers(1, 8), seed=st.integers(0, 50))
def test_each_token_is_predicted_from_those_before_it(block_size: int, seed: int) -> None:
    """Where all is revealed: known tokens and step by step give the same; a later token changes nothing before it."""
    coupling = make_coupling(seed)
    hidden, logits, tokens = inputs(block_size, seed)
    known = logits + coupling.predict(coupling(hidden, tokens))
    stepwise = coupled_logits(coupling.functions(), hidden, logits, tokens, MASK)
    torch.testing.assert_close(stepwise, known)
    masks = torch.full_like(tokens, MASK)
    told = coupled_logits(coupling.functions(), hidden, logits, None, MASK)
    assert torch.equal(told, coupled_logits(coupling.functions(), hidden, logits, masks, MASK))
    place = seed % block_size
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % NUM_OUTPUTS
    after = logits + coupling.predict(coupling(hidden, changed))
    assert torch.equal(after[:, : place + 1], known[:, : place + 1])
    assert place == block_size - 1 or not torch.allclose(after[:, place + 1], known[:, place + 1])


@settings(max_examples=25, deadline=None)
@given(block_size=st.integers(2, 8), seed=st.integers(0, 50))
def test_a_masked_token_is_read_as_the_most_probable_one(block_size: int, seed: int) -> None:
    coupling = make_coupling(seed)
    hidden, logits, tokens = inputs(block_size, seed)
    is_masked = torch.rand(3, block_size, generator=torch.Generator().manual_seed(seed)) < 0.6
    x_t = tokens.masked_fill(is_masked, MASK)
    given_masks = coupled_logits(coupling.functions(), hidden, logits, x_t, MASK)
    filled = torch.where(is_masked, given_masks.argmax(dim=-1), tokens)
    torch.testing.assert_close(given_masks, logits + coupling.predict(coupling(hidden, filled)))


def test_under_autocast_it_predicts_nearly_the_same() -> None:
    coupling = make_coupling().float()
    hidden, logits, tokens = (one.float() if one.is_floating_point() else one for one in inputs(6, 3))
    exact = coupled_logits(coupling.functions(), hidden, logits, tokens, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        states = coupling(hidden, tokens)
        rough = coupled_logits(coupling.functions(), hidden, logits, tokens, MASK)
    assert states.dtype == torch.float32, "the state keeps the precision of the weights"
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    converted = coupled_logits(coupling.functions(torch.bfloat16), hidden.bfloat16(), logits.bfloat16(), tokens, MASK)
    assert converted.dtype == torch.float32, "products of one row are faster in float32 on a CPU"
    torch.testing.assert_close(converted, exact, rtol=0.1, atol=0.1)


def test_it_learns_that_a_block_is_one_of_two() -> None:
    """Either all 0 or all 1: independent predictions lose log 2 in each token, the chain rule in the first alone."""
    coupling = make_coupling()
    coupling.reset_output()
    hidden = torch.zeros(8, 5, WIDTH, dtype=torch.float64)
    blocks = torch.tensor([0, 1]).repeat(4)[:, None].expand(8, 5)
    marginals = hidden.new_full((NUM_OUTPUTS,), -30.0)
    marginals[:2] = math.log(0.5)
    optimizer = torch.optim.Adam(coupling.parameters(), lr=0.05)

    def nll() -> Tensor:
        logits = marginals + coupling.predict(coupling(hidden, blocks))
        return F.cross_entropy(logits.flatten(0, 1), blocks.flatten())

    assert nll().item() == pytest.approx(math.log(2)), "without an effect at first"
    for _ in range(150):
        optimizer.zero_grad()
        nll().backward()
        optimizer.step()
    assert nll().item() == pytest.approx(math.log(2) / 5, abs=0.01)
    masks = torch.full((1, 5), MASK)
    said = coupled_logits(coupling.functions(), hidden[:1], marginals.expand(1, 5, -1), masks, MASK).argmax(dim=-1)
    assert said.unique().numel() == 1


@pytest.mark.parametrize("kind", ["coupled", "set_block_coupled"])
def test_a_talker_begins_as_if_it_had_none_and_starts_from_one_without(kind: str) -> None:
    talker = build_talker(kind, 12, 10)
    talker.reset_parameters(torch.Generator().manual_seed(1))
    plain = make_talker("mdm" if kind == "coupled" else "set_block")
    assert isinstance(talker, MaskedTalker) and isinstance(plain, MaskedTalker) and talker.coupling is not None
    drawn = talker.coupling.read.weight.clone()
    talker.copy_weights(plain)
    assert torch.equal(talker.coupling.read.weight, drawn)
    units = torch.randint(NUM_CODES, (2, 20), generator=torch.Generator().manual_seed(1))
    batch = talker.eval().corrupt(make_text([5, 2]), units, torch.tensor([20, 9]), torch.Generator().manual_seed(0))
    coupled, expected = talker.score(batch), plain.score(batch)
    assert torch.equal(coupled.nll, expected.nll)
    coupled.loss.backward()
    assert talker.coupling.predict.weight.grad is not None and talker.coupling.predict.weight.grad.abs().max() > 0


def test_masks_are_not_learned_on_from_a_talker_whose_coupling_is_left_out() -> None:
    """An autoregressive one may: its head has learned next tokens by itself."""
    coupled = make_talker("set_block_coupled")
    with pytest.raises(UserError, match="give coupling_size=6"):
        make_talker("set_block").copy_weights(coupled)
    ntp = make_talker("ntp")
    ntp.copy_weights(coupled)
    assert torch.equal(ntp.head.weight, coupled.head.weight)


@pytest.mark.parametrize("kind", ["coupled", "set_block_coupled"])
def test_drawing_tokens_that_are_coupled_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match="coupling predicts each token from the most probable ones"):
        make_talker(kind).check(in_steps(4, sampler=TokenSampler(0.8)))
    make_talker(kind).check(in_steps(4, sampler=TokenSampler(0.0)))


def test_a_size_below_0_is_refused() -> None:
    with pytest.raises(UserError, match="size is -1"):
        TokenCoupling(WIDTH, NUM_TOKENS, NUM_OUTPUTS, -1, BEGIN)
