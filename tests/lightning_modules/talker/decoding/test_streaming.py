"""Text states come block by block, or are known before, and blocks may start ahead; what is said is the same."""

import pytest
import torch
from torch import Tensor

from lightning_modules.talker.decoding.streaming import (
    AnchorReader,
    BlockDecoder,
    DecodedBlock,
    KnownTextState,
    cut_at_eos,
    stream_blocks,
)
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


class NamedBlocks(BlockDecoder):
    """Says blocks of two tokens, 10 and 11, 20 and 21 and so on, EOS in the last one; writes down what happens."""

    def __init__(self, runs_ahead: bool, num_blocks: int) -> None:
        self.may_run_ahead, self.num_blocks = runs_ahead, num_blocks
        self.log: list[str] = []

    @property
    def runs_ahead(self) -> bool:
        return self.may_run_ahead

    def decode_block(self, anchors: Tensor) -> DecodedBlock:
        number = 1 + len(self.log) - self.log.count("chunk") - self.log.count("closed")
        self.log.append(f"block {number}")
        second = EOS if number == self.num_blocks else 10 * number + 1
        return DecodedBlock(torch.tensor([10 * number, second]), 4)

    def close_block(self) -> int:
        self.log.append("closed")
        return 0


EOS = 9


def listen(decoder: NamedBlocks, is_known: bool, max_blocks: int = 6) -> tuple[list[list[int]], list[str]]:
    states = [KnownTextState(torch.zeros(5), torch.zeros(4))] * 2
    anchors, chunks = SemanticAnchors(5, 4, 8, anchors_per_block=3), []
    reader = AnchorReader(anchors, states if is_known else iter(states))
    for chunk in stream_blocks(decoder, reader, max_blocks, EOS):
        decoder.log.append("chunk")
        chunks.append(chunk)
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].ended == (len(chunks) == decoder.num_blocks) and {chunk.num_forwards for chunk in chunks} == {4}
    return [chunk.tokens.tolist() for chunk in chunks], [one for one in decoder.log if one != "closed"]


def test_a_block_starts_ahead_behind_the_first_chunk() -> None:
    said, log = listen(NamedBlocks(True, 4), is_known=True)
    assert said == [[10, 11], [20, 21], [30, 31], [40]]
    order = "block 1, chunk, block 2, block 3, chunk, block 4, chunk, block 5, chunk"
    assert ", ".join(log) == order, "what was ahead of the end is dropped"


@pytest.mark.parametrize(("runs_ahead", "is_known"), [(False, True), (True, False), (False, False)])
def test_no_block_starts_ahead_of_text_that_comes(runs_ahead: bool, is_known: bool) -> None:
    said, log = listen(NamedBlocks(runs_ahead, 4), is_known)
    assert said == [[10, 11], [20, 21], [30, 31], [40]]
    assert log == ["block 1", "chunk", "block 2", "chunk", "block 3", "chunk", "block 4", "chunk"]


@pytest.mark.parametrize("max_blocks", [1, 2, 3])
def test_no_block_starts_ahead_of_the_limit(max_blocks: int) -> None:
    said, log = listen(NamedBlocks(True, 6), is_known=True, max_blocks=max_blocks)
    assert len(said) == max_blocks and sum("block" in one for one in log) == max_blocks
