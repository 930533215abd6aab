"""Talkers of a given size with drawn weights, which share all that they can, and never say EOS."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.autoregressive import AutoregressiveTalker
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.streaming import KnownTextState, states_of_row
from lightning_modules.talker.masked_diffusion import MaskedDiffusionTalker
from lightning_modules.talker.masking.schemes import GlobalBernoulli
from lightning_modules.talker.multi_token import MultiTokenTalker
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.set_block import SetBlockTalker
from lightning_modules.talker.vocalnet.sizes import VocalNetSizes
from lightning_modules.talker.vocalnet.vocalnet_talker import ExtraLayer, VocalNetTalker

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DRAWN = ("ntp", "mtp", "mdm", "set_block", "vocalnet")


@dataclass(frozen=True)
class TalkerSizes:
    """Sizes of all talkers; the defaults are the quickstart's.

    Attributes:
        width: Model width.
        ffn_width: Inner width of the feed-forward networks.
        num_heads: Attention heads.
        num_layers: Decoder layers.
        num_codes: Size of the speech codebook.
        hidden_size: Width of the thinker's hidden states and embeddings.
        block_size: Speech tokens per block.
        anchors_per_block: Text tokens per block.
        num_extra_layers: Further layers of MTP, each of which predicts one more token.
        vocalnet: Sizes of VocalNet's talker; those above, with its own blocks, if None.

    Raises:
        UserError: If a number is out of range.
    """

    width: int = 192
    ffn_width: int = 512
    num_heads: int = 4
    num_layers: int = 4
    num_codes: int = 1000
    hidden_size: int = 128
    block_size: int = 16
    anchors_per_block: int = 4
    num_extra_layers: int = 4
    vocalnet: VocalNetSizes | None = None

    def __post_init__(self) -> None:
        """Check the values; parts check how they fit together."""
        require_at_least(1, **{f"sizes.{name}": value for name, value in vars(self).items() if name != "vocalnet"})

    @property
    def of_vocalnet(self) -> VocalNetSizes:
        """The sizes of VocalNet's talker, which is as wide as the hidden states that it reads."""
        return self.vocalnet or VocalNetSizes(
            self.width, self.ffn_width, self.num_heads, self.num_codes, num_decoder_layers=self.num_layers
        )


def build_talkers(sizes: TalkerSizes, names: set[str]) -> dict[str, Talker]:
    """Build talkers, which share anchors, backbone, embeddings and output head; VocalNet's shares nothing.

    Args:
        sizes: Their sizes.
        names: Which of `DRAWN`.

    Returns:
        Talkers by name; their weights are those of the constructors.

    Raises:
        UserError: If a name is unknown, or sizes do not fit together.
    """
    unknown = sorted(names - set(DRAWN))
    if unknown:
        raise UserError(f"there is no talker {unknown[0]!r} to draw; name one of {', '.join(DRAWN)}, or give it")
    talkers: dict[str, Talker] = {}
    if "vocalnet" in names:
        talkers["vocalnet"] = VocalNetTalker(sizes.of_vocalnet)
    if names == {"vocalnet"}:
        return talkers
    anchors = SemanticAnchors(sizes.hidden_size, sizes.hidden_size, sizes.width, sizes.anchors_per_block)
    backbone = TalkerBackbone(sizes.width, sizes.num_layers, sizes.num_heads, sizes.ffn_width)
    parts, masking = (sizes.num_codes, anchors, backbone), GlobalBernoulli()
    ours: dict[str, AnchoredTalker] = {"ntp": AutoregressiveTalker(*parts, sizes.block_size)}
    if "mtp" in names:
        extra_layers = [
            TalkerBackbone(sizes.width, 1, sizes.num_heads, sizes.ffn_width) for _ in range(sizes.num_extra_layers)
        ]
        ours["mtp"] = MultiTokenTalker(*parts, extra_layers, sizes.block_size)
    if "mdm" in names:
        ours["mdm"] = MaskedDiffusionTalker(*parts, masking, sizes.block_size)
    if "set_block" in names:
        ours["set_block"] = SetBlockTalker(*parts, masking, sizes.block_size)
    for talker in ours.values():
        talker.embed_tokens, talker.head = ours["ntp"].embed_tokens, ours["ntp"].head
    return talkers | {name: talker for name, talker in ours.items() if name in names}


def draw_talkers(
    sizes: TalkerSizes, names: set[str], dtype: torch.dtype, device: torch.device, seed: int
) -> dict[str, Talker]:
    """Build talkers where they decode, in the precision that they decode in, and draw their weights.

    Args:
        sizes: Their sizes.
        names: Which ones.
        dtype: Of the weights.
        device: Where they are built.
        seed: Of the weights.

    Returns:
        Talkers by name, in evaluation mode.
    """
    with device, _default_dtype(dtype):
        talkers = build_talkers(sizes, names)
        for talker in talkers.values():  # what is shared is drawn once for each, the last of which counts
            talker.reset_parameters(torch.Generator(device).manual_seed(seed))
    return {name: talker.eval() for name, talker in talkers.items()}


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def ban_eos(talkers: Mapping[str, Talker]) -> None:
    """Let no talker predict EOS by greedy decoding, whatever code runs it: its logit becomes the mean of the codes'.

    A mean is the largest only if all are equal. No decoding has a step more for it, and none less.

    Args:
        talkers: Talkers whose output heads are changed in place.
    """
    for talker in talkers.values():
        num_codes, eos_id = talker.vocabulary.num_codes, talker.vocabulary.eos_id
        for head in _heads(talker):
            for parameter in head.parameters():
                parameter[eos_id] = parameter[:num_codes].float().mean(dim=0).to(parameter.dtype)


def _heads(talker: Talker) -> list[nn.Linear]:
    """Give the output heads of a talker.

    Raises:
        UserError: If it is of a kind that is not known here.
    """
    if isinstance(talker, AnchoredTalker):
        return [talker.head]
    if isinstance(talker, VocalNetTalker):
        extra_layers = [layer for layer in talker.mtp_layers if isinstance(layer, ExtraLayer)]
        return [talker.output_proj, *(layer.output_proj for layer in extra_layers)]
    raise UserError(f"{type(talker).__name__}: the benchmark does not know such a talker; give one of {DRAWN}")


def num_text_tokens(talker: Talker, num_blocks: int) -> int:
    """Count the text tokens that a talker reads until it has spoken some blocks."""
    if isinstance(talker, AnchoredTalker):
        return num_blocks * talker.anchors.anchors_per_block
    assert isinstance(talker, VocalNetTalker)
    return num_blocks * talker.sizes.text_per_block + talker.state_offset


def draw_text(talker: Talker, num_blocks: int, dtype: torch.dtype, device: torch.device) -> list[KnownTextState]:
    """Draw as many text states as a talker can read in some blocks, so that text never ends before speech."""
    text = draw_text_of_batch(talker, num_blocks, 1, dtype, device)
    return states_of_row(text, 0)


def draw_text_of_batch(
    talker: Talker, num_blocks: int, batch_size: int, dtype: torch.dtype, device: torch.device
) -> TextStates:
    """Draw the text states of many replies, as :func:`draw_text` does of one."""
    if isinstance(talker, AnchoredTalker):
        widths = len(talker.anchors.hidden_norm.weight), len(talker.anchors.embedding_norm.weight)
    else:
        assert isinstance(talker, VocalNetTalker)
        widths = (talker.sizes.hidden_size,) * 2
    num_states, generator = num_text_tokens(talker, num_blocks), torch.Generator().manual_seed(0)
    hidden, embedding = (
        torch.randn(batch_size, num_states, width, generator=generator).to(device, dtype) for width in widths
    )
    return TextStates(hidden, embedding, torch.full((batch_size,), num_states))
