"""What every talker has in common: embeddings, anchors, backbone, output head, a loss and a stream."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.talker.blocks import BlockedSpeech, lay_out_in_blocks
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.streaming import (
    AnchorReader,
    BlockDecoder,
    SpeechChunk,
    TextState,
    stream_blocks,
)
from lightning_modules.talker.losses import LossTerm, add_terms
from lightning_modules.talker.masking.schemes import RowGenerators
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.vocabulary import SpeechVocabulary


@dataclass(frozen=True)
class TalkerOutput:
    """Result of one training forward pass.

    Attributes:
        terms: What training minimises the sum of, in nats.
        nll: Cross-entropy of the scored positions, a scalar in nats per token.
        accuracy: Share of scored positions whose most likely token is right.
        num_scored_tokens: Positions that ``nll`` and ``accuracy`` average over, a scalar int64.
        masked_share: Share of real positions that were masked; 0 for a talker without masks.
    """

    terms: tuple[LossTerm, ...]
    nll: Tensor
    accuracy: Tensor
    num_scored_tokens: Tensor
    masked_share: Tensor

    @property
    def loss(self) -> Tensor:
        """The sum of the terms on this device, a scalar in nats."""
        return add_terms(self.terms)

    def as_scalars(self) -> dict[str, Tensor]:
        """Scalars to log under tags that are the same for every talker."""
        names = ("loss", "nll", "accuracy", "masked_share")
        return {f"train/{name}": getattr(self, name).detach() for name in names}


class Talker(nn.Module, ABC):
    """Turns the text states of a thinker into discrete speech tokens.

    Subclasses differ in a loss (:meth:`forward`) and a decoder (:meth:`new_decoder`), and may have parts of their own
    (:attr:`own_parts`, prefixes of parameter names), which :meth:`copy_weights` leaves as they are if the source lacks
    them.

    Args:
        num_codes: Size of the speech codebook.
        anchors: Projects text states and assigns them to blocks.
        backbone: Decoder layers, as wide as the anchors.
        block_size: Speech tokens per block; 16 in the paper (0.64 s at 25 Hz).

    Raises:
        UserError: If the anchors do not fit into a block, or are not as wide as the backbone.
    """

    own_parts: tuple[str, ...] = ()

    def __init__(
        self, num_codes: int, anchors: SemanticAnchors, backbone: TalkerBackbone, block_size: int = 16
    ) -> None:
        super().__init__()
        if anchors.anchors_per_block > block_size:
            raise UserError(
                f"anchors_per_block is {anchors.anchors_per_block} but a block has {block_size} positions: "
                "lower anchors_per_block or raise block_size."
            )
        if anchors.projection.out_features != backbone.width:
            raise UserError(
                f"the anchors are {anchors.projection.out_features} wide, the backbone {backbone.width}: make their "
                "width equal."
            )
        self.vocabulary = SpeechVocabulary(num_codes)
        self.block_size = block_size
        self.anchors = anchors
        self.backbone = backbone
        self.embed_tokens = nn.Embedding(self.vocabulary.size, backbone.width)
        self.head = nn.Linear(backbone.width, self.vocabulary.num_outputs, bias=False)

    @property
    @abstractmethod
    def supported_steps(self) -> tuple[int, ...]:
        """Numbers of decoding steps per block that :meth:`stream` accepts, the default first."""

    @abstractmethod
    def forward(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator | RowGenerators
    ) -> TalkerOutput:
        """Score the speech tokens of a batch.

        Args:
            text: What the thinker wrote.
            units: Speech tokens, ``(B, T) int64``, right-padded.
            unit_lengths: Speech tokens of each row, ``(B,) int64``.
            generator: Source of all randomness of the loss: one for the batch, or one per row, with which a row is
                scored alike in any batch.

        Returns:
            The loss and what there is to log.
        """

    @abstractmethod
    def new_decoder(self, max_blocks: int, decoding: Decoding) -> BlockDecoder:
        """Make what decodes the blocks of one reply; the number of steps is given."""

    def check(self, decoding: Decoding) -> None:
        """Refuse a decoding that this talker does not know.

        Raises:
            UserError: If its number of steps or a rule is not supported.
        """
        if decoding.num_steps is not None and decoding.num_steps not in self.supported_steps:
            raise UserError(
                f"decoding of {decoding.talker}: num_steps is {decoding.num_steps}; this talker decodes a block in one "
                f"of {self.supported_steps} steps"
            )

    def stream(self, text: Iterable[TextState], max_blocks: int, decoding: Decoding) -> Iterator[SpeechChunk]:
        """Speak while the thinker is still writing: one chunk per block.

        Args:
            text: Text states one by one; at most ``anchors_per_block`` are pulled ahead of each block.
            max_blocks: Where speech is cut off if no EOS comes.
            decoding: How to decode; its talker's name is not looked at.

        Yields:
            The speech tokens of each block, up to the first EOS.

        Raises:
            UserError: If this talker does not know the decoding.
        """
        self.check(decoding)
        decoder = self.new_decoder(max_blocks, replace(decoding, num_steps=self.num_steps_of(decoding)))
        return stream_blocks(decoder, AnchorReader(self.anchors, text), max_blocks, self.vocabulary.eos_id)

    def num_steps_of(self, decoding: Decoding) -> int:
        """Give the steps per block of a decoding: its own, or this talker's default."""
        return self.supported_steps[0] if decoding.num_steps is None else decoding.num_steps

    def lay_out(self, units: Tensor, unit_lengths: Tensor) -> BlockedSpeech:
        """Lay a batch of speech tokens out in this talker's blocks."""
        return lay_out_in_blocks(units, unit_lengths, self.vocabulary, self.block_size)

    def copy_weights(self, source: "Talker") -> None:
        """Start from the weights of a trained talker, of whatever kind.

        Raises:
            UserError: If it lacks a weight of the same name and shape.
        """
        weights, own = source.state_dict(), self.state_dict()
        own = {key: value for key, value in own.items() if key in weights or not key.startswith(self.own_parts)}
        unfit = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
        if unfit:
            raise UserError(
                f"The initial talker has no {unfit[0]} of the same shape: give both talkers the same backbone, "
                "anchors and codebook, or leave initial_talker out."
            )
        if not self.head.weight.is_meta:  # else it is built to be checked only
            self.load_state_dict({key: weights[key] for key in own}, strict=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights from a generator, so that they do not depend on what was built before.

        Linear layers get a variance of 1 / fan-in, those that write into the residual stream less by the number
        of writes (GPT-2's rule); embeddings a standard deviation of 0.5; gains 1.
        """
        if self.head.weight.is_meta:
            return  # built to be checked only
        num_residual_writes = 2 * len(self.backbone.layers)
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                if name.startswith("embed_tokens"):
                    parameter.normal_(0.0, 0.5, generator=generator)
                elif parameter.ndim == 2:
                    is_residual = name.endswith(("attention_out.weight", "down.weight"))
                    scale = 1 / math.sqrt(parameter.shape[1] * (num_residual_writes if is_residual else 1))
                    parameter.normal_(0.0, scale, generator=generator)
                elif name.endswith("norm.weight"):
                    parameter.fill_(1.0)
                else:
                    parameter.zero_()
