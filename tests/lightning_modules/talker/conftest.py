"""Small talkers and made-up text states."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lightning_modules.talker.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.autoregressive import AutoregressiveTalker
from lightning_modules.talker.backbone import TalkerBackbone
from lightning_modules.talker.base import Talker
from lightning_modules.talker.masked_diffusion import MaskedDiffusionTalker
from lightning_modules.talker.masking import BlockBernoulli

NUM_CODES, HIDDEN, EMBEDDING, WIDTH = 30, 12, 10, 32


@dataclass(frozen=True)
class OneState:
    hidden: Tensor
    embedding: Tensor


def build_talker(kind: str, hidden_size: int, embedding_size: int) -> Talker:
    anchors = SemanticAnchors(hidden_size, embedding_size, WIDTH, anchors_per_block=2)
    backbone = TalkerBackbone(WIDTH, num_layers=2, num_heads=2)
    if kind == "ntp":
        return AutoregressiveTalker(NUM_CODES, anchors, backbone, block_size=8)
    masking = BlockBernoulli(0.3, 1.0)
    return MaskedDiffusionTalker(NUM_CODES, anchors, backbone, masking, block_size=8, clean_context=True)


def make_talker(kind: str) -> Talker:
    talker = build_talker(kind, HIDDEN, EMBEDDING)
    talker.reset_parameters(torch.Generator().manual_seed(5))
    return talker.eval()


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


def states_of(text: TextStates, row: int = 0) -> list[OneState]:
    return [OneState(text.hidden[row, j], text.embedding[row, j]) for j in range(int(text.lengths[row]))]


@pytest.fixture(params=["ntp", "mdm"])
def talker(request: pytest.FixtureRequest) -> Talker:
    return make_talker(request.param)
