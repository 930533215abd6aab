"""Equivalences between training, cached decoding and the ways to commit a block."""

import pytest
import torch
from torch import Tensor

from lightning_modules.talker.attention_masks import (
    anchored_causal_order,
    block_causal_order,
    clean_context_mask,
    mask_from_order,
)
from lightning_modules.talker.autoregressive import AutoregressiveTalker
from lightning_modules.talker.masked_diffusion import MaskedDiffusionTalker
from lightning_modules.talker.unmasking import most_confident, num_to_reveal
from tests.lightning_modules.talker.conftest import make_talker, make_text, states_of


def test_block_size_one_is_causal() -> None:
    order = block_causal_order(6, 1)
    assert torch.equal(mask_from_order(order, order), torch.ones(6, 6).tril().bool())


def test_anchor_slots_are_visible_to_their_whole_block_and_to_nothing_earlier() -> None:
    order = anchored_causal_order(num_blocks=2, block_size=3, anchors_per_block=2)
    mask = mask_from_order(order, order)
    assert mask[2].tolist() == [True, True, True] + [False] * 7
    assert mask[5].tolist() == [True] * 7 + [False] * 3
    assert mask[4].tolist() == [True] * 5 + [False] * 5


def test_clean_context_reads_own_noise_and_earlier_clean_blocks_only() -> None:
    mask = clean_context_mask(block_causal_order(2, 2))
    assert mask[2].tolist() == [False, False, True, True, True, True, False, False]
    assert mask[6].tolist() == [False, False, False, False, True, True, True, True]
    assert mask[4].tolist() == [False, False, False, False, True, True, False, False]


@torch.no_grad()
def decode_without_cache(talker: MaskedDiffusionTalker, text: object, max_blocks: int, num_steps: int) -> Tensor:
    """Plain loop: every step runs the whole prefix, finished blocks clean, through the training forward."""
    block_size, vocabulary = talker.block_size, talker.vocabulary
    tokens = torch.zeros(1, 0, dtype=torch.int64)
    for _ in range(max_blocks):
        tokens = torch.cat([tokens, torch.full((1, block_size), vocabulary.mask_id)], dim=1)
        num_masked = block_size
        for step in range(num_steps):
            logits = talker.logits(text, tokens)[:, -block_size:]  # type: ignore[arg-type]
            confidence, best = logits.softmax(-1).max(-1)
            block = tokens[:, -block_size:]
            num_revealed = num_to_reveal(num_masked, num_steps - step)
            revealed = most_confident(confidence, block == vocabulary.mask_id, num_revealed)
            tokens[:, -block_size:] = torch.where(revealed, best, block)
            num_masked -= num_revealed
        if (tokens[:, -block_size:] == vocabulary.eos_id).any():
            break
    is_eos = (tokens[0] == vocabulary.eos_id).nonzero()
    return tokens[0, : int(is_eos[0])] if len(is_eos) else tokens[0]


@pytest.mark.parametrize("num_steps", [8, 4, 2, 1])
@pytest.mark.parametrize("fused_commit", [True, False])
def test_cached_block_decoding_equals_the_full_forward(num_steps: int, fused_commit: bool) -> None:
    talker = make_talker("mdm")
    assert isinstance(talker, MaskedDiffusionTalker)
    text = make_text([7])
    expected = decode_without_cache(talker, text, 5, num_steps)
    chunks = list(talker.stream(states_of(text), 5, num_steps, fused_commit=fused_commit))
    assert torch.cat([chunk.tokens for chunk in chunks]).tolist() == expected.tolist()
    assert len(chunks) > 1, "one block alone would not test the cache"
    assert {chunk.num_forwards for chunk in chunks[:-1]} == {num_steps + (not fused_commit)}


@torch.no_grad()
def test_cached_autoregressive_decoding_equals_the_full_forward() -> None:
    talker = make_talker("ntp")
    assert isinstance(talker, AutoregressiveTalker)
    text = make_text([7])
    chunks = list(talker.stream(states_of(text), max_blocks=5))
    spoken = torch.cat([chunk.tokens for chunk in chunks])
    assert len(chunks) > 1
    padded = torch.cat([spoken, torch.zeros(5 * talker.block_size - len(spoken), dtype=torch.int64)])[None]
    best = talker.logits(text, padded)[0].argmax(-1)
    assert best[: len(spoken)].tolist() == spoken.tolist()
    if chunks[-1].ended:
        assert best[len(spoken)] == talker.vocabulary.eos_id


@torch.no_grad()
def test_clean_context_training_sees_what_decoding_sees() -> None:
    talker = make_talker("mdm")
    assert isinstance(talker, MaskedDiffusionTalker)
    text = make_text([6])
    x_0 = torch.randint(0, 30, (1, 24), generator=torch.Generator().manual_seed(0))
    x_t = x_0.masked_fill(
        torch.rand(1, 24, generator=torch.Generator().manual_seed(1)) < 0.5, talker.vocabulary.mask_id
    )
    both = talker.logits(text, x_t, x_0)
    for block in range(3):
        mixed = torch.cat([x_0[:, : 8 * block], x_t[:, 8 * block : 8 * block + 8]], dim=1)
        expected = talker.logits(text, mixed)[:, -8:]
        torch.testing.assert_close(both[:, 8 * block : 8 * block + 8], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_noisy_copies_do_not_see_each_other() -> None:
    talker = make_talker("mdm")
    assert isinstance(talker, MaskedDiffusionTalker)
    text = make_text([6, 4])
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 30, (2, 24), generator=generator)
    masks = [torch.rand(2, 24, generator=generator) < 0.6 for _ in range(3)]
    copies = [x_0.masked_fill(mask, talker.vocabulary.mask_id) for mask in masks]
    together = talker.logits(text, torch.cat(copies, dim=1), x_0)
    for copy, logits in zip(copies, together.split(24, dim=1), strict=True):
        torch.testing.assert_close(logits, talker.logits(text, copy, x_0), rtol=1e-4, atol=1e-5)
