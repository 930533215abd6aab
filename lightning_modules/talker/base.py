"""What every talker has in common: embeddings, anchors, backbone, output head, a loss and a stream."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.talker.blocks import BlockedSpeech, lay_out_in_blocks
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.streaming import (
    AnchorReader,
    BlockDecoder,
    SpeechChunk,
    TextState,
    stream_blocks,
)
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.vocabulary import SpeechVocabulary


@dataclass(frozen=True)
class TalkerOutput:
    """Result of one training forward pass.

    Attributes:
        loss: What training minimises, a scalar in nats.
        nll: Cross-entropy of the scored positions, a scalar in nats a token.
        accuracy: Share of scored positions whose most likely token is right.
        num_scored_tokens: Positions that ``loss`` averages over.
        masked_share: Share of real positions that were masked; 0 for a talker without masks.
    """

    loss: Tensor
    nll: Tensor
    accuracy: Tensor
    num_scored_tokens: Tensor
    masked_share: Tensor

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
        block_size: Speech tokens a block; 16 in the paper (0.64 s at 25 Hz).

    Raises:
        UserError: If the anchors do not fit into a block.
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
        self.vocabulary = SpeechVocabulary(num_codes)
        self.block_size = block_size
        self.anchors = anchors
        self.backbone = backbone
        self.embed_tokens = nn.Embedding(self.vocabulary.size, backbone.width)
        self.head = nn.Linear(backbone.width, self.vocabulary.num_outputs, bias=False)

    @property
    @abstractmethod
    def supported_steps(self) -> tuple[int, ...]:
        """Numbers of decoding steps a block that :meth:`stream` accepts, the default first."""

    @abstractmethod
    def forward(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator
    ) -> TalkerOutput:
        """Score the speech tokens of a batch.

        Args:
            text: What the thinker wrote.
            units: Speech tokens, ``(B, T) int64``, right-padded.
            unit_lengths: Speech tokens of each row, ``(B,) int64``.
            generator: Source of all randomness of the loss.

        Returns:
            The loss and what there is to log.
        """

    @abstractmethod
    def new_decoder(self, max_blocks: int, num_steps: int, sampler: TokenSampler | None) -> BlockDecoder:
        """Make what decodes the blocks of one reply; arguments as of :meth:`stream`, the steps resolved."""

    def stream(
        self,
        text: Iterable[TextState],
        max_blocks: int,
        num_steps: int | None = None,
        sampler: TokenSampler | None = None,
    ) -> Iterator[SpeechChunk]:
        """Speak while the thinker is still writing: one chunk a block.

        Args:
            text: Text states one by one; at most ``anchors_per_block`` are pulled ahead of each block.
            max_blocks: Where speech is cut off if no EOS comes.
            num_steps: Decoding steps a block, one of :attr:`supported_steps`; the first of them if left out.
            sampler: Chooses tokens; greedy if left out.

        Yields:
            The speech tokens of each block, up to the first EOS.

        Raises:
            UserError: If the number of steps is not supported.
        """
        decoder = self.new_decoder(max_blocks, self.resolve_num_steps(num_steps), sampler)
        return stream_blocks(decoder, AnchorReader(self.anchors, text), max_blocks, self.vocabulary.eos_id)

    def lay_out(self, units: Tensor, unit_lengths: Tensor) -> BlockedSpeech:
        """Lay a batch of speech tokens out in this talker's blocks."""
        return lay_out_in_blocks(units, unit_lengths, self.vocabulary, self.block_size)

    def resolve_num_steps(self, num_steps: int | None) -> int:
        """Check a number of decoding steps a block, or give the default for None."""
        if num_steps is None:
            return self.supported_steps[0]
        if num_steps not in self.supported_steps:
            raise UserError(f"num_steps is {num_steps}: this talker decodes a block in one of {self.supported_steps}.")
        return num_steps

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
        self.load_state_dict({key: weights[key] for key in own}, strict=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew from a generator, so that they do not depend on what was built before.

        Linear layers get a variance of 1 / fan-in, those that write into the residual stream less by the number
        of writes (GPT-2's rule); embeddings a standard deviation of 0.5; gains 1.
        """
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
