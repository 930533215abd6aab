"""How far tokens of a block depend on each other: none if made so, and by hand for a chain; the same in any batch."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.evaluation.block_dependence import BlockNll, block_nll
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masked.noisy_batch import NoisyBatch
from lightning_modules.talker.masked_diffusion import MaskedDiffusionTalker
from lightning_modules.talker.masking.schemes import BlockBernoulli
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.set_block import SetBlockTalker

NUM_CODES, HIDDEN = 6, 8
LENGTHS = torch.tensor([11, 3, 7])
KINDS = ("clean", "noisy", "set_block")


def make_text(seed: int = 0) -> TextStates:
    generator = torch.Generator().manual_seed(seed)
    hidden, embedding = torch.randn(2, 3, 4, HIDDEN, generator=generator)
    return TextStates(hidden, embedding, torch.tensor([4, 2, 3]))


def make_units(seed: int = 1) -> Tensor:
    return torch.randint(NUM_CODES, (3, 11), generator=torch.Generator().manual_seed(seed))


def make_talker(kind: str, masking: BlockBernoulli | None = None) -> MaskedTalker:
    anchors = SemanticAnchors(HIDDEN, HIDDEN, 16, anchors_per_block=2)
    parts = NUM_CODES, anchors, TalkerBackbone(16, num_layers=2, num_heads=2), masking or BlockBernoulli(0.3, 1.0)
    talker: MaskedTalker = (
        SetBlockTalker(*parts, block_size=4)
        if kind == "set_block"
        else MaskedDiffusionTalker(*parts, block_size=4, clean_context=kind == "clean")
    )
    talker.reset_parameters(torch.Generator().manual_seed(2))
    return talker.eval()


class ChainTalker(MaskedDiffusionTalker):
    """Knows the chain that its blocks are drawn from: two tokens, the first even, each later one like that before it.

    Attributes:
        stay: Probability that a token is like the one before it.
    """

    def __init__(self, stay: float) -> None:
        anchors = SemanticAnchors(HIDDEN, HIDDEN, 16, anchors_per_block=2)
        backbone = TalkerBackbone(16, num_layers=1, num_heads=2)
        super().__init__(NUM_CODES, anchors, backbone, BlockBernoulli(1.0, 1.0), block_size=4, clean_context=True)
        self.stay, self.head = stay, nn.Identity()  # type: ignore[assignment]

    def reader(self, batch: NoisyBatch) -> Callable[[Tensor], Tensor]:
        """Give the log-probabilities of each token given those before it that are seen."""

        def read(x_t: Tensor) -> Tensor:
            log_probs = torch.full((*x_t.shape, NUM_CODES + 1), -1e9)
            for row, place in ((row, place) for row in range(x_t.shape[0]) for place in range(x_t.shape[1])):
                block, offset = place // 4 * 4, place % 4
                seen = [i for i in range(offset) if int(x_t[row, block + i]) != batch.mask_id]
                for token in (0, 1):
                    probability = 0.5
                    if seen:
                        like = 0.5 * (1 + (2 * self.stay - 1) ** (offset - seen[-1]))
                        probability = like if int(x_t[row, block + seen[-1]]) == token else 1 - like
                    log_probs[row, place, token] = math.log(probability)
            return log_probs

        return read


def score(talker: MaskedTalker, text: TextStates, units: Tensor, lengths: Tensor = LENGTHS) -> BlockNll:
    return block_nll(talker, text, units, lengths)


def first_blocks(found: BlockNll) -> list[float]:
    return [found.per_token(steps, block=0) for steps in found.num_steps]


def test_a_chain_gives_what_one_computes_by_hand() -> None:
    """A block 0 0 0 1 at 0.9: ln 2 for each of 4 in one step, and ln 2, two times -ln 0.9 and -ln 0.1 in sequence."""
    units = torch.tensor([[0, 0, 0, 1]])
    text = TextStates(torch.zeros(1, 1, HIDDEN), torch.zeros(1, 1, HIDDEN), torch.tensor([1]))
    found = score(ChainTalker(0.9), text, units, torch.tensor([4]))
    assert found.num_steps == (1, 2, 4)
    like, unlike = -math.log(0.9), -math.log(0.1)
    in_two = 2 * math.log(2) + like - math.log(1 - 0.82)  # the second half is read off the second token
    expected = [4 * math.log(2) / 4, in_two / 4, (math.log(2) + 2 * like + unlike) / 4]
    assert first_blocks(found) == pytest.approx(expected)
    assert found.dependence(block=0) == pytest.approx(expected[0] - expected[2])
    independent = score(ChainTalker(0.5), text, units, torch.tensor([4]))
    assert first_blocks(independent) == pytest.approx([math.log(2)] * 3)
    assert independent.dependence(block=0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_talker_that_cannot_tell_tokens_apart_has_independent_ones(kind: str) -> None:
    talker = make_talker(kind)
    coupled = score(talker, make_text(), make_units())
    assert abs(coupled.dependence()) > 1e-3
    with torch.no_grad():
        talker.embed_tokens.weight[:] = talker.embed_tokens.weight[0]
    found = score(talker, make_text(), make_units())
    assert [found.per_token(steps) for steps in found.num_steps] == pytest.approx([found.per_token(1)] * 3, rel=1e-5)


def test_blocks_read_clean_earlier_ones_however_the_talker_was_trained() -> None:
    clean, noisy = (score(make_talker(kind), make_text(), make_units()) for kind in ("clean", "noisy"))
    torch.testing.assert_close(clean.sums, noisy.sums, rtol=1e-5, atol=1e-5)
    assert clean.counts.tolist() == [12, 8, 4]  # rows of 11, 3 and 7 tokens have 3, 1 and 2 blocks


@pytest.mark.parametrize("kind", ("clean", "set_block"))
def test_one_step_is_the_loss_with_everything_masked(kind: str) -> None:
    talker = make_talker(kind, BlockBernoulli(1.0, 1.0))
    with torch.no_grad():
        output = talker(make_text(), make_units(), LENGTHS, torch.Generator())
    assert score(talker, make_text(), make_units()).per_token(1) == pytest.approx(float(output.nll), rel=1e-5)


def test_a_row_counts_the_same_alone_and_sums_add_up() -> None:
    talker, text, units = make_talker("set_block"), make_text(), make_units()
    together, parts = score(talker, text, units), []
    for row, length in enumerate(LENGTHS.tolist()):
        own = slice(row, row + 1)
        alone = TextStates(text.hidden[own], text.embedding[own], text.lengths[own])
        parts.append(score(talker, alone, units[own, :length], LENGTHS[own]))
    added = parts[1] + parts[2] + parts[0]
    torch.testing.assert_close(added.sums, together.sums, rtol=1e-5, atol=1e-5)
    assert added.counts.tolist() == together.counts.tolist()
    scalars = together.as_scalars()
    assert scalars["val/block_dependence"] == together.dependence() and "val/block_nll/2_steps" in scalars
