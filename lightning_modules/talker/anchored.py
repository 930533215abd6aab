"""Talkers that read text as anchors of their blocks: embeddings, anchors, backbone and output head."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.talker.base import Talker, draw_weights
from lightning_modules.talker.blocks import BlockedSpeech, count_blocks, lay_out_in_blocks
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.static.batch import BatchedReply, decode_batch
from lightning_modules.talker.decoding.static.compiled import CompiledBlocks
from lightning_modules.talker.decoding.static.decoder import StaticDecoder
from lightning_modules.talker.decoding.static.program import BlockProgram, SpeechParts
from lightning_modules.talker.decoding.static.runners import BlockRunner, EagerRunner
from lightning_modules.talker.decoding.streaming import (
    AnchorReader,
    BlockDecoder,
    SpeechChunk,
    TextState,
    stream_blocks,
)
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates, count_text_overflow
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.vocabulary import SpeechVocabulary


class AnchoredTalker(Talker):
    """Speaks in blocks, each of which carries a few text tokens of its own.

    Subclasses differ in a loss (:meth:`forward`) and in the function that decodes a block
    (:meth:`block_program`).

    Args:
        num_codes: Size of the speech codebook.
        anchors: Projects text states and assigns them to blocks.
        backbone: Decoder layers, as wide as the anchors.
        block_size: Speech tokens per block; 16 in the paper (0.64 s at 25 Hz).

    Raises:
        UserError: If the anchors do not fit into a block, or are not as wide as the backbone.
    """

    vocabulary: SpeechVocabulary
    embeddings: tuple[str, ...] = ("embed_tokens",)

    def __init__(
        self, num_codes: int, anchors: SemanticAnchors, backbone: TalkerBackbone, block_size: int = 16
    ) -> None:
        super().__init__(SpeechVocabulary(num_codes), block_size)
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
        self.anchors = anchors
        self.backbone = backbone
        self.embed_tokens = nn.Embedding(self.vocabulary.size, backbone.width)
        self.head = nn.Linear(backbone.width, self.vocabulary.num_outputs, bias=False)
        self.new_runner: Callable[[BlockProgram], BlockRunner] = EagerRunner

    @property
    def text_view(self) -> str:
        """Say which text tokens each block carries; see :class:`Talker`."""
        count = self.anchors.anchors_per_block
        return f"block k carries text tokens {count}k to {count}k + {count - 1} and sees none later"

    @abstractmethod
    def block_program(self, max_blocks: int, decoding: Decoding) -> BlockProgram:
        """Make the function that decodes a block; the number of steps is given."""

    @abstractmethod
    def new_stepwise_decoder(self, max_blocks: int, decoding: Decoding) -> BlockDecoder:
        """Make what decodes the blocks of one reply step by step; the number of steps is given."""

    @property
    def speech_parts(self) -> SpeechParts:
        """What of this talker decodes."""
        ids = self.vocabulary.bos_id, self.vocabulary.mask_id, self.vocabulary.eos_id, self.vocabulary.num_outputs
        return SpeechParts(self.anchors, [self.backbone], self.embed_tokens, self.head, self.block_size, *ids)

    def check(self, decoding: Decoding) -> None:
        """Refuse rules for talkers that read text as a prefix, too; see :class:`Talker`."""
        super().check(decoding)
        if decoding.repetition is not None or decoding.whole_text:
            raise UserError(
                f"decoding of {decoding.talker}: repetition and whole_text are for talkers that read text as a prefix "
                "of their speech; this one reads it block by block; leave them out"
            )

    def stream(self, text: Iterable[TextState], max_blocks: int, decoding: Decoding) -> Iterator[SpeechChunk]:
        """Speak, with at most ``anchors_per_block`` text states pulled ahead of each block; see :class:`Talker`."""
        program = self.block_program(max_blocks, self._resolve(decoding))
        return self._stream(StaticDecoder(self.new_runner(program)), text, max_blocks)

    def compile_blocks(self) -> None:
        """Speak with compiled blocks from now on; see :class:`Talker`."""
        if not isinstance(self.new_runner, CompiledBlocks):
            self.new_runner = CompiledBlocks()

    def stream_stepwise(self, text: Iterable[TextState], max_blocks: int, decoding: Decoding) -> Iterator[SpeechChunk]:
        """Speak as :meth:`stream` does, one step after the other, with a growing cache: what it is measured against."""
        return self._stream(self.new_stepwise_decoder(max_blocks, self._resolve(decoding)), text, max_blocks)

    @torch.no_grad()
    def decode_batch(self, text: TextStates, max_blocks: int, decoding: Decoding) -> list[BatchedReply]:
        """Speak all rows side by side; see :class:`Talker`."""
        program = self.block_program(max_blocks, self._resolve(decoding))
        decoder = StaticDecoder(EagerRunner(program), len(text.lengths))
        return decode_batch(decoder, self.anchors(text, max_blocks), self.vocabulary.eos_id)

    def _resolve(self, decoding: Decoding) -> Decoding:
        """Give a decoding that this talker knows its number of steps."""
        self.check(decoding)
        return replace(decoding, num_steps=self.num_steps_of(decoding))

    def _stream(self, decoder: BlockDecoder, text: Iterable[TextState], max_blocks: int) -> Iterator[SpeechChunk]:
        return stream_blocks(decoder, AnchorReader(self.anchors, text), max_blocks, self.vocabulary.eos_id)

    def lay_out(self, units: Tensor, unit_lengths: Tensor) -> BlockedSpeech:
        """Lay a batch of speech tokens out in this talker's blocks."""
        return lay_out_in_blocks(units, unit_lengths, self.vocabulary, self.block_size)

    def count_text_overflow(self, text_lengths: Tensor, unit_lengths: Tensor) -> Tensor:
        """Count the text tokens that no anchor of an example's own blocks can carry; see :class:`Talker`."""
        num_blocks = count_blocks(unit_lengths, self.block_size)
        return count_text_overflow(text_lengths, num_blocks, self.anchors.anchors_per_block)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights; see :func:`draw_weights`."""
        residual_writes = ("attention_out.weight", "down.weight")
        draw_weights(self, generator, self.embeddings, residual_writes, 2 * len(self.backbone.layers))
