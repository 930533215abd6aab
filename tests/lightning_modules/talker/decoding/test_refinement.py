"""Refinement ends where one-by-one decoding does, and decoding with a cache equals a plain loop over full passes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.talker.autoregressive import AutoregressiveTalker
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.streaming import states_of_row
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.set_block import SetBlockTalker
from tests.lightning_modules.talker.conftest import in_steps, make_talker, make_text, masked_logits, next_token_logits

NUM_TOKENS = 5


def next_token_model(seed: int) -> Tensor:
    """Logits of the next token given the one before it (row 0: given none) at each of 6 places."""
    return 3 * torch.randn(6, NUM_TOKENS + 1, NUM_TOKENS, generator=torch.Generator().manual_seed(seed))


def predict(model: Tensor, tokens: Tensor) -> Tensor:
    previous = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1] + 1], dim=1)
    return model[torch.arange(6), previous]


def greedy(model: Tensor) -> list[int]:
    tokens: list[int] = []
    for place in range(6):
        tokens.append(int(model[place, tokens[-1] + 1 if tokens else 0].argmax()))
    return tokens


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 999),
    draft=st.lists(st.integers(0, NUM_TOKENS - 1), min_size=6, max_size=6),
    max_steps=st.integers(1, 8),
)
def test_each_step_corrects_the_first_wrong_token_until_greedy_decoding_is_reached(
    seed: int, draft: list[int], max_steps: int
) -> None:
    model = next_token_model(seed)
    expected, given_tokens = greedy(model), torch.tensor([draft])
    refined = Refinement(1)(lambda tokens: predict(model, tokens), given_tokens, max_steps)
    assert refined.tokens[0, :max_steps].tolist() == expected[:max_steps]
    assert refined.num_steps <= max_steps
    assert refined.is_settled or refined.num_steps == max_steps
    if refined.is_settled:
        assert refined.tokens[0].tolist() == expected
    untouched = refined.order[0] < 0
    assert torch.equal(refined.tokens[0, untouched], given_tokens[0, untouched])
    assert int((~untouched).sum()) == refined.num_steps - refined.is_settled, "one token per step"
    assert given_tokens[0].tolist() == draft


def test_a_good_draft_takes_one_step() -> None:
    model = next_token_model(3)
    refined = Refinement(1)(lambda tokens: predict(model, tokens), torch.tensor([greedy(model)]), 4)
    assert (refined.num_steps, refined.is_settled) == (1, True)
    assert (refined.order == -1).all()


def test_no_step_to_draft_in_is_refused() -> None:
    with pytest.raises(ValueError, match="draft_steps"):
        Refinement(0)


@torch.no_grad()
def refine_without_cache(
    talker: SetBlockTalker, text: TextStates, max_blocks: int, num_steps: int
) -> tuple[list[int], list[int]]:
    """Plain loop: one step drafts, the others run the whole prefix through the next-token forward."""
    size, vocabulary = talker.block_size, talker.vocabulary
    tokens, passes = torch.zeros(1, 0, dtype=torch.int64), []
    for _ in range(max_blocks):
        tokens = torch.cat([tokens, torch.full((1, size), vocabulary.mask_id)], dim=1)
        tokens[:, -size:] = masked_logits(talker, text, tokens, tokens)[:, -size:].argmax(-1)
        passes.append(1)
        for _ in range(num_steps - 1):
            best, block = next_token_logits(talker, text, tokens)[0, -size:].argmax(-1), tokens[0, -size:]
            passes[-1] += 1
            if torch.equal(best, block):
                break
            first = int((best != block).nonzero()[0])
            block[first] = best[first]
        if (tokens[:, -size:] == vocabulary.eos_id).any():
            break
    is_eos = (tokens[0] == vocabulary.eos_id).nonzero()
    return (tokens[0, : int(is_eos[0])] if len(is_eos) else tokens[0]).tolist(), passes


def set_block_talker() -> SetBlockTalker:
    talker = make_talker("set_block")
    assert isinstance(talker, SetBlockTalker)
    return talker


@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_cached_refinement_equals_the_full_forward(num_steps: int) -> None:
    talker, text = set_block_talker(), make_text([7])
    expected, passes = refine_without_cache(talker, text, 5, num_steps)
    chunks = list(talker.stream(states_of_row(text, 0), 5, in_steps(num_steps, refinement=Refinement(1))))
    assert torch.cat([chunk.tokens for chunk in chunks]).tolist() == expected
    assert [chunk.num_forwards for chunk in chunks] == passes
    assert len(chunks) > 1, "one block alone would not test the cache"
    assert all(chunk.order is not None and int(chunk.order.max()) < num_steps for chunk in chunks)
    for chunk in chunks:
        assert chunk.order is not None and chunk.draft is not None
        assert torch.equal(chunk.draft != chunk.tokens, chunk.order > 0), (
            "only the one step of the draft is no correction"
        )


@torch.no_grad()
def test_as_many_steps_as_tokens_give_what_next_token_prediction_gives() -> None:
    talker, text = set_block_talker(), make_text([7])
    one_by_one = AutoregressiveTalker(30, talker.anchors, talker.backbone, 8)
    one_by_one.load_state_dict(talker.state_dict())
    expected = torch.cat([chunk.tokens for chunk in one_by_one.stream(states_of_row(text, 0), 3, in_steps())])
    refined = torch.cat(
        [chunk.tokens for chunk in talker.stream(states_of_row(text, 0), 3, in_steps(8, refinement=Refinement(1)))]
    )
    # Seven corrections settle the first seven tokens of a block; the eighth may need one more.
    assert refined[:7].tolist() == expected[:7].tolist()
