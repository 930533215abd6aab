"""What every talker has in common, whatever it makes of the text: a loss, a stream, decodings that it knows."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.talker.blocks import refuse_foreign_codes
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.static.batch import BatchedReply
from lightning_modules.talker.decoding.streaming import SpeechChunk, TextState, states_of_row
from lightning_modules.talker.losses import LossTerm, add_terms
from lightning_modules.talker.masking.schemes import RowGenerators
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.vocabulary import SpeechVocabulary


@dataclass(frozen=True)
class TalkerOutput:
    """Result of one training forward pass.

    Attributes:
        terms: What training minimises the sum of, in nats.
        nll: Cross-entropy of the scored positions, a scalar in nats per token.
        accuracy: Share of scored positions whose most likely token is right.
        num_scored_tokens: Positions that ``nll`` and ``accuracy`` average over, a scalar int64 on the host.
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


class EndOfSpeech(Protocol):
    """What others must know of a talker's vocabulary."""

    @property
    def num_codes(self) -> int:
        """Size of the speech codebook; smaller ids are codes."""
        ...

    @property
    def eos_id(self) -> int:
        """End of speech."""
        ...


class Talker(nn.Module, ABC):
    """Turns the text states of a thinker into discrete speech tokens.

    Subclasses differ in how they read text, in a loss (:meth:`forward`) and a decoder (:meth:`stream`), and may have
    parts of their own (:attr:`own_parts`, prefixes of parameter names), which :meth:`copy_weights` leaves as they are
    if the source lacks them.

    Args:
        vocabulary: Gives the id that ends speech.
        block_size: Speech tokens that are decoded, and leave, together.

    Attributes:
        is_published: Whether its weights were read from a published checkpoint, from which its training starts.
    """

    own_parts: tuple[str, ...] = ()
    is_published = False

    def __init__(self, vocabulary: EndOfSpeech, block_size: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.block_size = block_size

    @property
    @abstractmethod
    def supported_steps(self) -> tuple[int, ...]:
        """Numbers of decoding steps per block that :meth:`stream` accepts, the default first."""

    @property
    @abstractmethod
    def text_view(self) -> str:
        """Say in words which text the speech of a block sees, for tables of what is compared."""

    @abstractmethod
    def forward(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator | RowGenerators
    ) -> TalkerOutput:
        """Score the speech tokens of a batch.

        Args:
            text: What the thinker wrote.
            units: Speech tokens, ``(B, T) int64``, right-padded.
            unit_lengths: Speech tokens of each row, ``(B,) int64``; on the host, or it waits for them.
            generator: Source of all randomness of the loss, on the host: one for the batch, or one per row, with which
                a row is scored alike in any batch.

        Returns:
            The loss and what there is to log.
        """

    @abstractmethod
    def stream(self, text: Iterable[TextState], max_blocks: int, decoding: Decoding) -> Iterator[SpeechChunk]:
        """Speak while the thinker is still writing: one chunk per block.

        Args:
            text: Text states one by one, pulled when they are needed.
            max_blocks: Where speech is cut off if no EOS comes.
            decoding: How to decode; its talker's name is not looked at.

        Yields:
            The speech tokens of each block, up to the first EOS.

        Raises:
            UserError: If this talker does not know the decoding.
        """

    def decode_batch(self, text: TextStates, max_blocks: int, decoding: Decoding) -> list[BatchedReply]:
        """Speak many replies whose texts are written, each as :meth:`stream` speaks it alone.

        Args:
            text: Text states of all replies.
            max_blocks: Where speech is cut off if no EOS comes.
            decoding: How to decode; its talker's name is not looked at.

        Returns:
            One reply per row. A talker that knows no batches decodes one row after the other.

        Raises:
            UserError: If this talker does not know the decoding.
        """
        rows = range(len(text.lengths))
        return [BatchedReply.of(self.stream(states_of_row(text, row), max_blocks, decoding)) for row in rows]

    def compile_blocks(self) -> None:
        """Let :meth:`stream` run compiled functions on a CPU; a talker that has none speaks as before."""

    @abstractmethod
    def count_text_overflow(self, text_lengths: Tensor, unit_lengths: Tensor) -> Tensor:
        """Count the text tokens of each example that this talker never sees in training.

        Args:
            text_lengths: Text tokens of each reply, ``(B,) int64``.
            unit_lengths: Speech tokens of each reply, ``(B,) int64``.

        Returns:
            ``(B,) int64``; 0 for a well-formed example.
        """

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights from a generator, so that they do not depend on what was built before."""

    def constructor_arguments(self) -> dict[str, Any] | None:
        """Give plain arguments that build it again, without weights; None if only its configuration knows them.

        A talker that can be read from published files needs them: an export holds its weights, and not those files.
        """
        return None

    @property
    def is_on_meta(self) -> bool:
        """Whether it has no weights, built to be checked only."""
        return next(self.parameters()).is_meta

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

    def num_steps_of(self, decoding: Decoding) -> int:
        """Give the steps per block of a decoding: its own, or this talker's default."""
        return self.supported_steps[0] if decoding.num_steps is None else decoding.num_steps

    def refuse_foreign_codes(self, units: Tensor | None, unit_lengths: Tensor | None) -> None:
        """Refuse speech tokens that this talker has no codes for, while they are on the host.

        Raises:
            UserError: If there is one.
        """
        if units is not None and unit_lengths is not None and units.device.type == "cpu":
            refuse_foreign_codes(units, unit_lengths, SpeechVocabulary(self.vocabulary.num_codes))

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
        if not self.is_on_meta:
            self.load_state_dict({key: weights[key] for key in own}, strict=False)


def draw_weights(
    module: nn.Module,
    generator: torch.Generator,
    embeddings: tuple[str, ...],
    residual_writes: tuple[str, ...],
    num_residual_writes: int,
) -> None:
    """Draw the weights of a network from a generator; does nothing on the meta device.

    Linear layers get a variance of 1 / fan-in, those that write into the residual stream less by the number of writes
    (GPT-2's rule); embeddings a standard deviation of 0.5; gains 1; biases and other vectors 0.

    Args:
        module: Its parameters are drawn in their order.
        generator: Source of randomness.
        embeddings: Beginnings of the names of embeddings.
        residual_writes: Ends of the names of the matrices that write into the residual stream.
        num_residual_writes: How many there are in a row.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            return
        with torch.no_grad():
            if name.startswith(embeddings):
                parameter.normal_(0.0, 0.5, generator=generator)
            elif parameter.ndim == 2:
                is_residual = name.endswith(residual_writes)
                scale = 1 / math.sqrt(parameter.shape[1] * (num_residual_writes if is_residual else 1))
                parameter.normal_(0.0, scale, generator=generator)
            elif name.endswith(("norm.weight", "norm_final.weight")):
                parameter.fill_(1.0)
            else:
                parameter.zero_()
