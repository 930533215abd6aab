"""Text states come block by block, or are known before; the anchors of the blocks are the same."""

import pytest
import torch

from lightning_modules.talker.decoding.streaming import AnchorReader, KnownTextState, cut_at_eos
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates


@pytest.mark.parametrize("num_states", [0, 1, 3, 6, 7])
def test_known_text_is_read_as_text_that_comes(num_states: int) -> None:
    torch.manual_seed(0)
    anchors = SemanticAnchors(5, 4, 8, anchors_per_block=3).double()
    torch.nn.init.normal_(anchors.no_text)
    hidden, embedding = torch.randn(num_states, 5).double(), torch.randn(num_states, 4).double()
    states = [KnownTextState(*one) for one in zip(hidden, embedding, strict=True)]
    known, coming = AnchorReader(anchors, states), AnchorReader(anchors, iter(states))
    text = TextStates(hidden[None], embedding[None], torch.tensor([num_states]))
    expected = anchors(text, 4)[0]
    for block in range(4):
        for reader in (known, coming):
            found = reader.next_block()
            assert found.shape == (1, 1, 3, 8)
            torch.testing.assert_close(found[0, 0], expected[block])


def test_text_that_comes_is_not_pulled_ahead_of_its_block() -> None:
    anchors, pulled = SemanticAnchors(5, 4, 8, anchors_per_block=3), []

    def write() -> object:
        for index in range(7):
            pulled.append(index)
            yield KnownTextState(torch.zeros(5), torch.zeros(4))

    reader = AnchorReader(anchors, write())  # type: ignore[arg-type]
    for num_pulled in (3, 6, 7, 7):
        reader.next_block()
        assert len(pulled) == num_pulled


def test_speech_ends_before_the_first_eos() -> None:
    tokens = torch.tensor([4, 9, 2, 9])
    assert [one.tolist() for one in cut_at_eos(tokens, 9)[:1]] == [[4]] and cut_at_eos(tokens, 9)[1]
    assert cut_at_eos(tokens, 7)[0] is tokens and not cut_at_eos(tokens, 7)[1]
