"""The multi-token-prediction talker (MTP): autoregressive, several tokens per step."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.talker.autoregressive import AutoregressiveTalker, StepDecoder
from lightning_modules.talker.base import TalkerOutput
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.static.next_tokens import NextTokenProgram
from lightning_modules.talker.decoding.static.program import BlockProgram
from lightning_modules.talker.losses import LossTerm, masked_cross_entropy
from lightning_modules.talker.masking.schemes import RowGenerators
from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates
from lightning_modules.talker.network.attention_masks import anchored_causal_order, visible_up_to
from lightning_modules.talker.network.backbone import TalkerBackbone


class MultiTokenTalker(AutoregressiveTalker):
    """Predicts each token and, through extra decoder layers one after the other, the tokens behind it.

    The slots are those of :class:`AutoregressiveTalker`. Extra layer ``i`` reads the hidden states of the layer before
    it and predicts, from the slot of token ``p``, token ``p + i``; all share the output head. A step never predicts
    across the end of a block, since the next block's anchors are not there yet.

    Args:
        num_codes: Size of the speech codebook.
        anchors: Projects text states and assigns them to blocks.
        backbone: Decoder layers that predict the next token.
        extra_layers: Decoders of one layer each, as wide as the backbone; ``N - 1`` predict ``N`` tokens per step.
        block_size: Speech tokens per block.
        decay: Weight of each extra layer's loss as a share of that of the one before.

    Raises:
        UserError: If there is no extra layer, more than a block can use, one of another width, or a decay outside
            (0, 1].

    Reference: arXiv 2504.04060 (VocalNet), multi-token prediction with layer-wise decaying cross-entropy.
    """

    own_parts = ("extra_layers.",)

    def __init__(
        self,
        num_codes: int,
        anchors: SemanticAnchors,
        backbone: TalkerBackbone,
        extra_layers: list[TalkerBackbone],
        block_size: int = 16,
        decay: float = 0.8,
    ) -> None:
        super().__init__(num_codes, anchors, backbone, block_size)
        if not 1 <= len(extra_layers) < block_size:
            raise UserError(
                f"{len(extra_layers)} extra_layers: give at least 1 and fewer than block_size={block_size}."
            )
        widths = {layer.width for layer in extra_layers}
        if widths != {backbone.width}:
            raise UserError(f"extra_layers are {sorted(widths)} wide, the backbone {backbone.width}: make them equal.")
        if not 0.0 < decay <= 1.0:
            raise UserError(f"decay is {decay}: give a number above 0 and up to 1.")
        self.extra_layers = nn.ModuleList(extra_layers)
        self.decay = decay

    @property
    def max_tokens_per_step(self) -> int:
        """Tokens that one forward pass can predict, ``N``."""
        return 1 + len(self.extra_layers)

    @property
    def supported_steps(self) -> tuple[int, ...]:
        """Steps per block for every number of tokens per step, the fewest first."""
        return tuple(sorted({math.ceil(self.block_size / n) for n in range(1, self.max_tokens_per_step + 1)}))

    def ahead_hidden(self, text: TextStates, x_0: Tensor) -> list[Tensor]:
        """Give the hidden states from which each layer predicts.

        Args:
            text: What the thinker wrote.
            x_0: Tokens in whole blocks, ``(B, L) int64``.

        Returns:
            ``N`` tensors ``(B, L, width)``; position ``p`` of the ``i``-th predicts token ``p + i``.
        """
        num_blocks, num_anchors = x_0.shape[1] // self.block_size, self.anchors.anchors_per_block
        positions = self.slot_positions(num_blocks, x_0.device)
        order = anchored_causal_order(num_blocks, self.block_size, num_anchors, x_0.device)
        attention = self.backbone.attention_of(visible_up_to(order))
        states = [self.backbone(self.slots(text, x_0), positions, attention)]
        for layer in self.extra_layers:
            states.append(layer(states[-1], positions, attention))
        return [self.of_tokens(state, num_blocks) for state in states]

    def forward(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator | RowGenerators
    ) -> TalkerOutput:
        """Cross-entropy of every layer, decaying by layer; ``nll`` is that of the next token; see :class:`Talker`."""
        speech = self.lay_out(units, unit_lengths)
        offsets = torch.arange(speech.x_0.shape[1]) % self.block_size
        total_weight = sum(self.decay**ahead for ahead in range(self.max_tokens_per_step))
        terms, accuracies = [], []
        for ahead, hidden in enumerate(self.ahead_hidden(text, speech.x_0)):
            targets = speech.x_0.roll(-ahead, dims=1)
            is_scored = speech.is_up_to_first_eos.roll(-ahead, dims=1) & (offsets < self.block_size - ahead)
            loss, accuracy = masked_cross_entropy(self.head, hidden, targets, is_scored)
            terms.append(LossTerm(loss, is_scored.sum(), self.decay**ahead / total_weight))
            accuracies.append(accuracy)
        nll = terms[0].mean
        return TalkerOutput(tuple(terms), nll.detach(), accuracies[0], terms[0].count, nll.new_zeros(()))

    def block_program(self, max_blocks: int, decoding: Decoding) -> BlockProgram:
        """Decode ``ceil(block_size / num_steps)`` tokens per forward pass; see :class:`AnchoredTalker`."""
        parts = replace(self.speech_parts, backbones=self._layers_of(decoding))
        return NextTokenProgram(parts, decoding, max_blocks)

    def new_stepwise_decoder(self, max_blocks: int, decoding: Decoding) -> StepDecoder:
        """Decode ``ceil(block_size / num_steps)`` tokens per forward pass; see :class:`AnchoredTalker`."""
        return StepDecoder(self, self._layers_of(decoding), max_blocks, decoding)

    def _layers_of(self, decoding: Decoding) -> list[TalkerBackbone]:
        assert decoding.num_steps is not None
        extra_layers = [layer for layer in self.extra_layers if isinstance(layer, TalkerBackbone)]
        return [self.backbone, *extra_layers[: math.ceil(self.block_size / decoding.num_steps) - 1]]
