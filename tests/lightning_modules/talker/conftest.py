"""Small talkers and made-up text states."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.autoregressive import AutoregressiveTalker
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masked_diffusion import MaskedDiffusionTalker
from lightning_modules.talker.masking.schemes import BlockBernoulli
from lightning_modules.talker.multi_token import MultiTokenTalker
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.set_block import SetBlockTalker
from lightning_modules.talker.vocalnet.sizes import VocalNetSizes
from lightning_modules.talker.vocalnet.vocalnet_talker import VocalNetTalker

NUM_CODES, HIDDEN, EMBEDDING, WIDTH = 30, 12, 10, 32


def build_talker(kind: str, hidden_size: int, embedding_size: int) -> Talker:
    if kind == "vocalnet":
        return VocalNetTalker(VocalNetSizes(hidden_size, 24, 2, NUM_CODES, 1, 2, 3, text_per_block=2, block_size=8))
    anchors = SemanticAnchors(hidden_size, embedding_size, WIDTH, anchors_per_block=2)
    backbone = TalkerBackbone(WIDTH, num_layers=2, num_heads=2)
    if kind == "ntp":
        return AutoregressiveTalker(NUM_CODES, anchors, backbone, block_size=8)
    if kind == "mtp":
        extra_layers = [TalkerBackbone(WIDTH, num_layers=1, num_heads=2) for _ in range(3)]
        return MultiTokenTalker(NUM_CODES, anchors, backbone, extra_layers, block_size=8)
    masking = BlockBernoulli(0.3, 1.0)
    if kind in ("set_block", "set_block_coupled"):
        coupling_size = 6 if kind == "set_block_coupled" else 0
        return SetBlockTalker(NUM_CODES, anchors, backbone, masking, block_size=8, coupling_size=coupling_size)
    coupling_size = 6 if kind == "coupled" else 0
    return MaskedDiffusionTalker(
        NUM_CODES, anchors, backbone, masking, block_size=8, clean_context=True, coupling_size=coupling_size
    )


def make_talker(kind: str) -> Talker:
    talker = build_talker(kind, HIDDEN, EMBEDDING)
    generator = torch.Generator().manual_seed(5)
    talker.reset_parameters(generator)
    if isinstance(talker, MaskedTalker) and talker.coupling is not None:
        # A coupling begins without effect; these tests want one that has learned something.
        torch.nn.init.normal_(talker.coupling.predict.weight, std=1.0, generator=generator)
    return talker.eval()


def logits_of(talker: Talker, text: TextStates, tokens: Tensor) -> Tensor:
    """Predictions of every position: from its past, or from its masked block and clean earlier ones."""
    if isinstance(talker, SetBlockTalker):
        return masked_logits(talker, text, torch.full_like(tokens, talker.vocabulary.mask_id), tokens)
    return (
        next_token_logits(talker, text, tokens)
        if isinstance(talker, AutoregressiveTalker)
        else mdm_logits(talker, text, tokens)
    )


def next_token_logits(talker: Talker, text: TextStates, x_0: Tensor) -> Tensor:
    """Predictions of each token from those before it, ``(B, L, V)``."""
    assert isinstance(talker, AutoregressiveTalker)
    return talker.head(talker.causal_hidden(text, x_0))


def masked_logits(talker: Talker, text: TextStates, x_t: Tensor, x_0: Tensor) -> Tensor:
    """Predictions of a set-block talker's masked copies, ``(B, C * L, V)``."""
    assert isinstance(talker, SetBlockTalker)
    return talker.head(talker.hidden(text, x_t, x_0)[0])


def mdm_logits(talker: Talker, text: TextStates, x_t: Tensor, x_0: Tensor | None = None) -> Tensor:
    """Predictions of a masked-diffusion talker for partly masked sequences."""
    assert isinstance(talker, MaskedDiffusionTalker)
    return talker.head(talker.hidden(text, x_t, x_0))


def in_steps(num_steps: int | None = None, **rules: Any) -> Decoding:
    """A decoding of the talker at hand."""
    return Decoding("it", num_steps, **rules)


def make_text(lengths: list[int], seed: int = 0) -> TextStates:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    hidden = torch.randn(*shape, HIDDEN, generator=generator)
    embedding = torch.randn(*shape, EMBEDDING, generator=generator)
    return TextStates(hidden, embedding, torch.tensor(lengths))


def row_of(text: TextStates, row: int) -> TextStates:
    length = int(text.lengths[row])
    return TextStates(
        text.hidden[row : row + 1, :length], text.embedding[row : row + 1, :length], text.lengths[row : row + 1]
    )


@pytest.fixture(params=["ntp", "mtp", "mdm", "set_block", "coupled", "set_block_coupled"])
def talker(request: pytest.FixtureRequest) -> AnchoredTalker:
    made = make_talker(request.param)
    assert isinstance(made, AnchoredTalker)
    return made


@pytest.fixture(params=["ntp", "mtp", "mdm", "set_block", "vocalnet"])
def any_talker(request: pytest.FixtureRequest) -> Talker:
    return make_talker(request.param)
