"""Equivalences between training, cached decoding and the ways to commit a block."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.talker.autoregressive import AutoregressiveTalker
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.streaming import states_of_row
from lightning_modules.talker.decoding.unmasking import most_confident, num_to_reveal
from lightning_modules.talker.masked_diffusion import MaskedDiffusionTalker
from lightning_modules.talker.masking.noisy_blocks import DrawnBlocks
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.attention import CausalContextAttention, attend
from lightning_modules.talker.network.attention_masks import (
    anchored_causal_order,
    block_causal_order,
    mask_from_order,
    visible_in_causal_context,
    visible_in_clean_context,
)
from lightning_modules.talker.network.key_value_cache import StaticCache
from lightning_modules.talker.set_block import SetBlockTalker, training_on
from tests.lightning_modules.talker.conftest import (
    in_steps,
    make_talker,
    make_text,
    masked_logits,
    mdm_logits,
    next_token_logits,
)


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
    mask = visible_in_clean_context(block_causal_order(2, 2)).mask
    assert mask[2].tolist() == [False, False, True, True, True, True, False, False]
    assert mask[6].tolist() == [False, False, False, False, True, True, True, True]
    assert mask[4].tolist() == [False, False, False, False, True, True, False, False]


def test_causal_context_reads_own_noise_and_the_clean_past_up_to_the_anchors() -> None:
    mask = visible_in_causal_context(num_blocks=2, block_size=2, anchors_per_block=1, num_noisy_copies=2).mask
    # Columns: noisy copy 1 (2 blocks of 2), noisy copy 2, then clean [anchor, token, token] twice.
    assert mask[2].tolist() == [False, False, True, True] + [False] * 4 + [True] * 4 + [False] * 2
    assert mask[4].tolist() == [False] * 4 + [True, True] + [False] * 2 + [True] + [False] * 5
    assert mask[8].tolist() == [False] * 8 + [True] + [False] * 5
    assert mask[12].tolist() == [False] * 8 + [True] * 5 + [False]


@pytest.mark.parametrize("trains", [True, False])
def test_attention_by_structure_equals_attention_by_mask(trains: bool) -> None:
    attention = CausalContextAttention(num_blocks=3, block_size=4, anchors_per_block=2, num_noisy_copies=2)
    states = torch.randn(3, 2, 2, 42, 6, generator=torch.Generator().manual_seed(0)).requires_grad_(trains)
    attended = attention(*states)
    expected = torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=attention.mask)
    torch.testing.assert_close(attended, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attend(*states, attention.mask), expected, rtol=1e-5, atol=1e-6)
    # Keys and values of the clean copy first, as a cache holds them: by structure, and by mask as on other devices.
    num_noisy = attention.num_noisy
    cached = [states[0][:, :, :num_noisy], *(one.roll(-num_noisy, dims=2) for one in states[1:])]
    of_noisy = expected[:, :, :num_noisy]
    torch.testing.assert_close(attention.after_clean(*cached), of_noisy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attend(*cached, attention.of_noisy), of_noisy, rtol=1e-5, atol=1e-6)
    if trains:
        gradients = [torch.autograd.grad(one.square().sum(), states)[0] for one in (attended, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def predict_partly_masked(talker: Talker, text: TextStates, tokens: Tensor) -> Tensor:
    """The training forward of a sequence of which only the last block is masked."""
    if isinstance(talker, SetBlockTalker):
        return masked_logits(talker, text, tokens, tokens)
    return mdm_logits(talker, text, tokens)


@torch.no_grad()
def decode_without_cache(talker: Talker, text: TextStates, max_blocks: int, num_steps: int) -> Tensor:
    """Plain loop: every step runs the whole prefix, finished blocks clean, through the training forward."""
    block_size, vocabulary = talker.block_size, talker.vocabulary
    tokens = torch.zeros(1, 0, dtype=torch.int64)
    for _ in range(max_blocks):
        tokens = torch.cat([tokens, torch.full((1, block_size), vocabulary.mask_id)], dim=1)
        num_masked = block_size
        for step in range(num_steps):
            logits = predict_partly_masked(talker, text, tokens)[:, -block_size:]
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


@pytest.mark.parametrize("kind", ["mdm", "set_block"])
@pytest.mark.parametrize("num_steps", [8, 4, 2, 1])
@pytest.mark.parametrize("fused_commit", [True, False])
def test_cached_block_decoding_equals_the_full_forward(kind: str, num_steps: int, fused_commit: bool) -> None:
    talker = make_talker(kind)
    text = make_text([7])
    expected = decode_without_cache(talker, text, 5, num_steps)
    chunks = list(talker.stream(states_of_row(text, 0), 5, in_steps(num_steps, fused_commit=fused_commit)))
    assert torch.cat([chunk.tokens for chunk in chunks]).tolist() == expected.tolist()
    assert len(chunks) > 1, "one block alone would not test the cache"
    assert {chunk.num_forwards for chunk in chunks[:-1]} == {num_steps + (not fused_commit)}


@pytest.mark.parametrize("kind", ["ntp", "mtp", "mdm", "set_block"])
def test_a_cache_has_the_precision_that_keys_are_computed_in(kind: str) -> None:
    """Under autocast too: a float32 cache would be converted as a whole in every pass."""
    talker = make_talker(kind)
    seen: list[torch.dtype] = []
    whole = StaticCache.__init__

    def spy(cache: StaticCache, *arguments: Any) -> None:
        whole(cache, *arguments)
        seen.extend(buffer.dtype for buffer in cache.buffers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StaticCache, "__init__", spy)
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                chunks = list(talker.stream(states_of_row(make_text([7]), 0), 3, in_steps()))
            assert len(chunks) > 1
            assert set(seen) == {torch.bfloat16 if enabled else torch.float32}
            seen.clear()


@torch.no_grad()
def test_cached_autoregressive_decoding_equals_the_full_forward() -> None:
    talker = make_talker("ntp")
    assert isinstance(talker, AutoregressiveTalker)
    text = make_text([7])
    chunks = list(talker.stream(states_of_row(text, 0), 5, in_steps()))
    spoken = torch.cat([chunk.tokens for chunk in chunks])
    assert len(chunks) > 1
    padded = torch.cat([spoken, torch.zeros(5 * talker.block_size - len(spoken), dtype=torch.int64)])[None]
    best = next_token_logits(talker, text, padded)[0].argmax(-1)
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
    both = mdm_logits(talker, text, x_t, x_0)
    for block in range(3):
        mixed = torch.cat([x_0[:, : 8 * block], x_t[:, 8 * block : 8 * block + 8]], dim=1)
        expected = mdm_logits(talker, text, mixed)[:, -8:]
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
    together = mdm_logits(talker, text, torch.cat(copies, dim=1), x_0)
    for copy, logits in zip(copies, together.split(24, dim=1), strict=True):
        torch.testing.assert_close(logits, mdm_logits(talker, text, copy, x_0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_set_block_training_reads_the_past_as_an_autoregressive_talker_does() -> None:
    talker = make_talker("set_block")
    assert isinstance(talker, SetBlockTalker)
    text = make_text([6, 4])
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 30, (2, 24), generator=generator)
    copies = [
        x_0.masked_fill(torch.rand(2, 24, generator=generator) < 0.6, talker.vocabulary.mask_id) for _ in range(2)
    ]
    of_noisy, of_clean = talker.hidden(text, torch.cat(copies, dim=1), x_0)
    torch.testing.assert_close(talker.head(of_clean), next_token_logits(talker, text, x_0), rtol=1e-4, atol=1e-5)
    for copy, hidden in zip(copies, of_noisy.split(24, dim=1), strict=True):
        for block in range(3):
            mixed = torch.cat([x_0[:, : 8 * block], copy[:, 8 * block : 8 * block + 8]], dim=1)
            alone = masked_logits(talker, text, mixed, mixed)[:, -8:]
            torch.testing.assert_close(talker.head(hidden[:, 8 * block : 8 * block + 8]), alone, rtol=1e-4, atol=1e-5)


def test_set_block_talker_learns_from_masks_alone_or_from_next_tokens_too() -> None:
    text, lengths = make_text([4]), torch.tensor([11])
    units = torch.randint(0, 30, (1, 11), generator=torch.Generator().manual_seed(0))
    talker = make_talker("set_block")
    assert isinstance(talker, SetBlockTalker)
    losses = {}
    for weight in (0.0, 1.0, 3.0):
        talker.next_token_weight = weight
        output = talker(text, units, lengths, torch.Generator().manual_seed(1))
        losses[weight] = float(output.loss.detach())
        assert float(output.nll) == losses[0.0]
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]), rel=1e-4)
    assert losses[1.0] > losses[0.0]


@pytest.mark.parametrize(("argument", "value"), [("num_noisy_copies", 0), ("next_token_weight", -0.5)])
def test_set_block_talker_refuses_nonsense(argument: str, value: float) -> None:
    whole = make_talker("set_block")
    assert isinstance(whole, SetBlockTalker)
    with pytest.raises(ValueError, match=argument):
        SetBlockTalker(30, whole.anchors, whole.backbone, whole.masking, 8, **{argument: value})  # type: ignore[arg-type]


def test_a_trained_set_block_talker_learns_on_as_one_that_was_made_that_way() -> None:
    text, lengths = make_text([4]), torch.tensor([11])
    units = torch.randint(0, 30, (1, 11), generator=torch.Generator().manual_seed(0))
    trained, blocks = make_talker("set_block").train(), DrawnBlocks(4)
    assert isinstance(trained, SetBlockTalker)
    parts = trained.anchors, trained.backbone, trained.masking
    made = SetBlockTalker(30, *parts, block_size=8, noisy_blocks=blocks, next_token_weight=0.7).train()
    made.load_state_dict(trained.state_dict())
    before = trained(text, units, lengths, torch.Generator().manual_seed(1))
    learning = training_on(trained, blocks, 0.7)(text, units, lengths, torch.Generator().manual_seed(1))
    expected = made(text, units, lengths, torch.Generator().manual_seed(1))
    assert torch.equal(learning.loss, expected.loss) and not torch.equal(learning.loss, before.loss)
    with pytest.raises(ValueError, match="next_token_weight"):
        training_on(trained, blocks, -0.5)
