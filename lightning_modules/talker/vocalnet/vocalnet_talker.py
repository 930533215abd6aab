"""VocalNet's talker: Llama layers over a text prefix, and layers that predict further tokens."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_positive, require_within
from lightning_modules.pretrained.meta_device import is_on_meta
from lightning_modules.pretrained.weight_files import WeightFiles, read_config_file
from lightning_modules.talker.base import Talker, TalkerOutput, draw_weights
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.streaming import SpeechChunk, TextState
from lightning_modules.talker.losses import LossTerm, masked_cross_entropy
from lightning_modules.talker.masking.schemes import RowGenerators
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.transfers import send_to
from lightning_modules.talker.vocalnet.llama_layers import make_layers, run_layers
from lightning_modules.talker.vocalnet.prefix_decoder import PrefixParts, stream_with_prefix
from lightning_modules.talker.vocalnet.sizes import PrefixVocabulary, VocalNetSizes, check_width, sizes_of_config
from lightning_modules.talker.vocalnet.training_masks import DecodedLayout, ReleasedLayout, draw_sees_all

PREFIX = "speech_generator."
TEXT_EMBEDDINGS = "model.embed_tokens.weight"


class ExtraLayer(nn.Module):
    """Predicts one more token from the states of the layer before it.

    Args:
        sizes: Sizes of the talker.
    """

    def __init__(self, sizes: VocalNetSizes) -> None:
        super().__init__()
        self.decoder_layer = make_layers(sizes, 1)[0]
        self.norm_final = LlamaRMSNorm(sizes.hidden_size, eps=1e-6)
        self.output_proj = nn.Linear(sizes.hidden_size, sizes.vocabulary.size)

    def head(self, hidden: Tensor) -> Tensor:
        """Give logits, ``(..., V)``."""
        return self.output_proj(self.norm_final(hidden))


class VocalNetTalker(Talker):
    """Predicts speech behind a prefix of text states, several tokens per pass.

    The prefix is ``[bos, encoded text, end of text]``, speech follows as ``[sos, tokens]``. It reads the thinker's last
    hidden states only. Where other talkers of this project carry text in the blocks of speech, all speech sees all of
    the prefix, which grows by ``text_per_block`` states for each further block until the text has ended. Parameters
    have the names of the released checkpoints.

    Args:
        sizes: Its sizes.
        state_offset: 0 reads the states that predicted each text token, as the released inference does; 1 reads the
            states at the tokens, which predict the next ones, as the released training does. With 1, each block waits
            for one text token more.
        train_as_decoded: Train on what decoding sees; False trains as the released code does, on what
            :class:`ReleasedLayout` describes.
        decay: Weight of each extra layer's loss as a share of that of the one before.

    Raises:
        UserError: If a number is out of range.

    Reference: arXiv 2504.04060. Dropout in attention (0.1 there) is left out.
    """

    own_parts = ("mtp_layers.",)
    vocabulary: PrefixVocabulary

    def __init__(
        self, sizes: VocalNetSizes, state_offset: int = 0, train_as_decoded: bool = False, decay: float = 0.8
    ) -> None:
        super().__init__(sizes.vocabulary, sizes.block_size)
        require_positive(decay=decay)
        require_within(0.0, 1.0, decay=decay)
        if state_offset not in (0, 1):
            raise UserError(
                f"state_offset is {state_offset}; give 0 for the states that predicted the text tokens, or 1 for those "
                "at the tokens"
            )
        self.sizes, self.state_offset, self.decay = sizes, state_offset, decay
        self.train_as_decoded = train_as_decoded
        self.layout = DecodedLayout if train_as_decoded else ReleasedLayout
        self.embedding = nn.Embedding(sizes.vocabulary.size, sizes.hidden_size)
        self.encode_layers = make_layers(sizes, sizes.num_encoder_layers)
        self.decode_layers = make_layers(sizes, sizes.num_decoder_layers)
        self.norm = LlamaRMSNorm(sizes.hidden_size, eps=1e-6)
        self.output_proj = nn.Linear(sizes.hidden_size, sizes.vocabulary.size)
        self.mtp_layers = nn.ModuleList(ExtraLayer(sizes) for _ in range(sizes.num_extra_layers))
        self.end_of_text = nn.Parameter(torch.zeros(sizes.hidden_size))

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, end_of_text_id: int, state_offset: int = 0, train_as_decoded: bool = False
    ) -> "VocalNetTalker":
        """Read a talker out of a released VocalNet checkpoint; of the rest, only one embedding is read.

        On the meta device `config.json` alone is read.

        Args:
            path: Directory with `config.json` and the weights, in safetensors or .bin, in one file or in shards.
            end_of_text_id: Text token whose embedding stands behind the text: 128009 for the released models on Llama,
                151643 for those on Qwen.
            state_offset: As of the class.
            train_as_decoded: As of the class.

        Returns:
            The talker, in float32.

        Raises:
            FileNotFoundError: If a file is missing.
            UserError: If the configuration is of another kind, or a weight is missing or unexpected.
        """
        what = "VocalNet's talker"
        sizes = sizes_of_config(read_config_file(path, what), str(Path(path) / "config.json"))
        with torch.device("meta"):
            talker = cls(sizes, state_offset, train_as_decoded)
        talker.is_published = True
        if is_on_meta():
            return talker
        files = WeightFiles(path, what)
        shapes = {name: value.shape for name, value in talker.state_dict().items() if name != "end_of_text"}
        weights = files.read_all(PREFIX, shapes)
        num_text_tokens = files.num_rows(TEXT_EMBEDDINGS)
        if not 0 <= end_of_text_id < num_text_tokens:
            raise UserError(
                f"{what}: end_of_text_id is {end_of_text_id}, but the language model in {path} has {num_text_tokens} "
                "tokens; give the token whose embedding ended its texts, 128009 on Llama, 151643 on Qwen"
            )
        end_of_text = files.read(TEXT_EMBEDDINGS, end_of_text_id, end_of_text_id + 1)
        talker.load_state_dict({**weights, "end_of_text": end_of_text[0].float()}, assign=True)
        return talker

    def constructor_arguments(self) -> dict[str, Any]:
        """Give its sizes and settings; see :class:`Talker`."""
        names = ("state_offset", "train_as_decoded", "decay")
        return {"sizes": asdict(self.sizes), **{name: getattr(self, name) for name in names}}

    @property
    def supported_steps(self) -> tuple[int, ...]:
        """Passes per block for every number of tokens per pass, those of 3 first, as the released inference does."""
        per_pass = range(1, self.sizes.num_extra_layers + 2)
        steps = {math.ceil(self.block_size / n) for n in per_pass}
        default = math.ceil(self.block_size / min(3, per_pass[-1]))
        return (default, *sorted(steps - {default}))

    @property
    def text_view(self) -> str:
        """Say how far the text prefix reaches; see :class:`Talker`."""
        count = self.sizes.text_per_block
        return f"block k sees all text up to token {count}k + {count - 1} as a prefix"

    def count_text_overflow(self, text_lengths: Tensor, unit_lengths: Tensor) -> Tensor:
        """Give zeros: examples see all of their text in half of the draws, however long it is; see :class:`Talker`."""
        return torch.zeros_like(text_lengths)

    def head(self, hidden: Tensor) -> Tensor:
        """Give logits of the next token, ``(..., V)``."""
        return self.output_proj(self.norm(hidden))

    def encode(self, text: TextStates) -> tuple[Tensor, Tensor]:
        """Encode texts and put bos ahead of them.

        Args:
            text: What the thinker wrote.

        Returns:
            Prefixes ``(B, 1 + N + 1, H)``, right-padded, and their lengths ``(B,) int64``.
        """
        check_width(text.hidden, self.sizes)
        states = text.hidden[:, self.state_offset :].to(self.end_of_text.dtype)
        num_states = (text.lengths.to(states.device) - self.state_offset).clamp(min=0)
        slots = torch.arange(states.shape[1] + 1, device=states.device)
        states = nn.functional.pad(states, (0, 0, 0, 1)) * (slots < num_states[:, None])[..., None]
        states = states + (slots == num_states[:, None])[..., None] * self.end_of_text
        x = run_layers(self.encode_layers, states, slots[None], (slots <= slots[:, None])[None], None)
        begin = self.embedding(torch.full_like(num_states, self.vocabulary.bos_id)[:, None])
        return torch.cat([begin.to(x.dtype), x], dim=1), num_states + 2

    def ahead_hidden(self, text: TextStates, tokens: Tensor, sees_all: Tensor) -> list[Tensor]:
        """Give the hidden states from which each layer predicts.

        Args:
            text: What the thinker wrote.
            tokens: ``(B, T) int64``.
            sees_all: Rows that see all text; it grows with the speech of the others, ``(B,) bool``.

        Returns:
            For the next token and for each extra layer ``(B, 1 + T, H)``; position ``p`` of the ``i``-th predicts token
            ``p + i``.
        """
        prefix, lengths = self.encode(text)
        start = tokens.new_full((len(tokens), 1), self.vocabulary.sos_id)
        speech = self.embedding(torch.cat([start, tokens], dim=1))
        layout = self.layout(
            prefix.shape[1], speech.shape[1], lengths, sees_all, self.sizes.text_per_block, self.block_size
        )
        x, positions = torch.cat([prefix, speech.to(prefix.dtype)], dim=1), layout.positions()
        states = [run_layers(self.decode_layers, x, positions, layout.mask(), None)]
        for ahead, layer in enumerate(self._extra_layers(), start=1):
            x = layout.next_input(states[0], states[-1])
            states.append(run_layers([layer.decoder_layer], x, positions, layout.mask(ahead), None))
        return [state[:, prefix.shape[1] :] for state in states]

    def forward(
        self, text: TextStates, units: Tensor, unit_lengths: Tensor, generator: torch.Generator | RowGenerators
    ) -> TalkerOutput:
        """Cross-entropy of every layer, decaying by layer; ``nll`` is that of the next token; see :class:`Talker`.

        Half of the rows see all text, in the others it grows with the speech.
        """
        self.refuse_foreign_codes(units, unit_lengths)
        is_scored = torch.arange(units.shape[1] + 1) <= unit_lengths.cpu()[:, None]  # on the host, which counts them
        unit_lengths = send_to(units.device, unit_lengths)
        slots = torch.arange(units.shape[1] + 1, device=units.device)
        tokens = torch.where(slots[:-1] < unit_lengths[:, None], units, self.vocabulary.pad_id)
        targets = nn.functional.pad(tokens, (0, 1), value=self.vocabulary.pad_id)
        targets = targets.scatter(1, unit_lengths[:, None], self.vocabulary.eos_id)
        states = self.ahead_hidden(text, tokens, send_to(units.device, draw_sees_all(len(units), generator)))
        heads = [self.head, *(layer.head for layer in self._extra_layers())]
        terms, accuracies = [], []
        for ahead, (head, hidden) in enumerate(zip(heads, states, strict=True)):
            of_layer = hidden[:, : len(slots) - ahead], targets[:, ahead:], is_scored[:, ahead:]
            loss, accuracy = masked_cross_entropy(head, *of_layer)
            terms.append(LossTerm(loss, of_layer[2].sum(), self.decay**ahead))
            accuracies.append(accuracy)
        nll = terms[0].mean
        return TalkerOutput(tuple(terms), nll.detach(), accuracies[0], terms[0].count, nll.new_zeros(()))

    def check(self, decoding: Decoding) -> None:
        """Refuse rules for masks, too; see :class:`Talker`."""
        super().check(decoding)
        if decoding.unmasking is not None or decoding.refinement is not None:
            raise UserError(
                f"decoding of {decoding.talker}: this talker predicts tokens in their order and has no masks to reveal "
                "nor a draft to refine; leave unmasking and refinement out"
            )

    def stream(self, text: Iterable[TextState], max_blocks: int, decoding: Decoding) -> Iterator[SpeechChunk]:
        """Speak, with ``text_per_block`` text states pulled ahead of each block; see :class:`Talker`."""
        self.check(decoding)
        predictors = [(layer.decoder_layer, layer.head) for layer in self._extra_layers()]
        parts = PrefixParts(
            self.sizes,
            self.embedding,
            self.encode_layers,
            [(self.decode_layers, self.head), *(([layer], head) for layer, head in predictors)],
            self.end_of_text,
        )
        decoding = replace(decoding, num_steps=self.num_steps_of(decoding))
        return stream_with_prefix(parts, text, self.state_offset, max_blocks, decoding)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights; see :func:`draw_weights`."""
        residual_writes = ("o_proj.weight", "down_proj.weight")
        draw_weights(self, generator, ("embedding",), residual_writes, 2 * self.sizes.num_decoder_layers)

    def _extra_layers(self) -> list[ExtraLayer]:
        return [layer for layer in self.mtp_layers if isinstance(layer, ExtraLayer)]
