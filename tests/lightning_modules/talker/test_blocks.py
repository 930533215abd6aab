"""Properties of blocks, of losses over scored positions, and of text that blocks cannot carry."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.talker.blocks import lay_out_in_blocks
from lightning_modules.talker.losses import masked_cross_entropy
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
