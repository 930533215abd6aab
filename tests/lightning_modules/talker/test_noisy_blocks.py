"""A set-block talker that trains on noisy blocks drawn one by one, in place of whole noisy copies."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.talker.masked.distillation import SelfDistillation
from lightning_modules.talker.masking.noisy_blocks import DrawnBlocks
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.attention import CausalContextAttention
from lightning_modules.talker.network.attention_masks import visible_in_causal_context
from lightning_modules.talker.set_block import SetBlockTalker
from tests.lightning_modules.talker.conftest import NUM_CODES, make_talker, make_text

SIZE = 8
LENGTHS = torch.tensor([30, 7, 17])  # 4, 1 and 3 blocks
TEXT = make_text([6, 2, 4])


def make_set_block(draw: DrawnBlocks | None = None, kind: str = "set_block") -> SetBlockTalker:
    talker = make_talker(kind)
    assert isinstance(talker, SetBlockTalker)
    talker.noisy_blocks = draw
    return talker


def make_units(seed: int = 0) -> Tensor:
    return torch.randint(0, NUM_CODES, (3, 30), generator=torch.Generator().manual_seed(seed))


def noise(x_0: Tensor, mask_id: int) -> Tensor:
    return x_0.masked_fill(torch.rand(x_0.shape, generator=torch.Generator().manual_seed(2)) < 0.6, mask_id)


def test_blocks_at_all_places_of_the_grid_are_whole_copies() -> None:
    grid = (torch.arange(3) * 4).repeat(2)
    expected = visible_in_causal_context(3, 4, 2, 2).mask
    assert torch.equal(visible_in_causal_context(3, 4, 2, starts=grid).mask, expected)
    by_row = visible_in_causal_context(3, 4, 2, starts=torch.stack([grid, grid])).mask
    assert torch.equal(by_row, torch.stack([expected, expected])[:, None])


@pytest.mark.parametrize("trains", [True, False])
def test_attention_by_structure_equals_attention_by_mask_where_rows_differ(trains: bool) -> None:
    attention = CausalContextAttention(3, 4, 2, 1, starts=torch.tensor([[0, 5, 8], [4, 0, 3]]))
    states = torch.randn(3, 2, 2, 30, 6, generator=torch.Generator().manual_seed(0)).requires_grad_(trains)
    expected = F.scaled_dot_product_attention(*states, attn_mask=attention.mask)
    torch.testing.assert_close(attention(*states), expected, rtol=1e-5, atol=1e-6)
    cached = [states[0][:, :, :12], *(one.roll(-12, dims=2) for one in states[1:])]
    torch.testing.assert_close(attention.after_clean(*cached), expected[:, :, :12], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_block_on_the_grid_is_read_as_in_a_whole_copy() -> None:
    talker = make_set_block()
    x_0 = talker.lay_out(make_units(), LENGTHS).x_0
    copy = noise(x_0, talker.vocabulary.mask_id)
    whole, clean = talker.hidden(TEXT, copy, x_0)
    starts = SIZE * torch.tensor([[2, 0, 2], [0, 0, 0], [1, 2, 0]])
    positions = (starts[..., None] + torch.arange(SIZE)).flatten(1)
    drawn, clean_beside = talker.hidden(TEXT, copy.gather(1, positions), x_0, starts)
    expected = whole.gather(1, positions[..., None].expand(-1, -1, whole.shape[-1]))
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clean_beside, clean, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("start", [0, 3, 8, 13, 16, 23])
def test_a_block_reads_the_tokens_before_it_and_the_anchors_known_where_it_begins(start: int) -> None:
    talker = make_set_block()
    text, x_0 = make_text([8]), torch.randint(0, NUM_CODES, (1, 32), generator=torch.Generator().manual_seed(1))
    x_t = torch.full((1, SIZE), talker.vocabulary.mask_id)

    def hidden(text: TextStates, x_0: Tensor) -> Tensor:
        return talker.hidden(text, x_t, x_0, torch.tensor([[start]]))[0]

    told = hidden(text, x_0)
    for position in range(32):
        other = x_0.clone()
        other[0, position] = (other[0, position] + 1) % NUM_CODES
        assert torch.equal(hidden(text, other), told) == (position >= start), position
    for token in range(8):  # two anchors per block
        changed = text.hidden.clone()
        changed[0, token] += 1.0
        is_unread = token // 2 > start // SIZE
        assert torch.equal(hidden(TextStates(changed, text.embedding, text.lengths), x_0), told) == is_unread, token


@pytest.mark.parametrize("kind", ["set_block", "set_block_coupled"])
def test_training_scores_the_masked_tokens_of_the_drawn_blocks_alike(kind: str) -> None:
    talker = make_set_block(DrawnBlocks(5, off_grid_share=0.4, fully_masked_share=0.3), kind).train()
    batch = talker.corrupt(TEXT, make_units(), LENGTHS, torch.Generator().manual_seed(3))
    assert batch.starts is not None
    output = talker.score(batch)
    nlls = []
    for row in range(3):
        for index, start in enumerate(batch.starts[row].tolist()):
            within = slice(index * SIZE, (index + 1) * SIZE)
            clean, is_masked = batch.speech.x_0[row : row + 1], batch.is_masked[row, within]
            x_t = clean[:, start : start + SIZE].masked_fill(is_masked, talker.vocabulary.mask_id)
            row_text = TextStates(
                TEXT.hidden[row : row + 1], TEXT.embedding[row : row + 1], TEXT.lengths[row : row + 1]
            )
            hidden = talker.hidden(row_text, x_t, clean, batch.starts[row : row + 1, index : index + 1])[0]
            own = clean[:, start : start + SIZE]
            logits = talker.predict(talker.couple(hidden, own))
            nlls.append(F.cross_entropy(logits[0], own[0], reduction="none")[is_masked])
    expected = torch.cat(nlls)
    torch.testing.assert_close(output.nll, expected.mean().detach(), rtol=1e-4, atol=1e-5)
    assert int(output.num_scored_tokens) == len(expected) == int(batch.is_masked.sum())
    assert float(output.masked_share) == pytest.approx(len(expected) / (3 * 5 * SIZE))


def test_gradients_reach_the_clean_past_of_drawn_blocks_and_nothing_behind_it() -> None:
    talker = make_set_block(DrawnBlocks(3, fully_masked_share=1.0)).train()
    talker.next_token_weight = 0.0
    units = torch.arange(24)[None]  # each token once
    talker(make_text([4]), units, torch.tensor([23]), torch.Generator().manual_seed(0)).loss.backward()
    gradient = talker.embed_tokens.weight.grad
    assert gradient is not None
    sizes = gradient.abs().sum(dim=1)
    assert sizes[:16].min() > 0 and sizes[talker.vocabulary.mask_id] > 0
    assert sizes[16:23].max() == 0, "the last block is drawn, and all masked: its own tokens are read by none"


@torch.no_grad()
def test_evaluation_keeps_its_masks_and_its_losses() -> None:
    plain, drawing = make_set_block(), make_set_block(DrawnBlocks(3, fully_masked_share=1.0))
    of_rows = [[torch.Generator().manual_seed(row) for row in range(3)] for _ in range(2)]
    one, other = (
        talker(TEXT, make_units(), LENGTHS, rows) for talker, rows in zip((plain, drawing), of_rows, strict=True)
    )
    assert torch.equal(one.nll, other.nll) and torch.equal(one.masked_share, other.masked_share)


def test_a_teacher_fills_drawn_blocks_from_a_cache_as_without_one() -> None:
    student, teacher = make_set_block(DrawnBlocks(4, off_grid_share=0.5)).train(), make_set_block()
    batch = student.corrupt(TEXT, make_units(), LENGTHS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            teacher.reader(batch)(batch.x_t), teacher.masked_hidden(batch, batch.x_t), rtol=1e-4, atol=1e-5
        )
    settings = SelfDistillation(num_steps=4, on_policy_share=0.5)
    output = student.distil(teacher, batch, settings, torch.Generator().manual_seed(1))
    output.loss.backward()
    assert output.loss.isfinite() and all(parameter.grad is None for parameter in teacher.parameters())
