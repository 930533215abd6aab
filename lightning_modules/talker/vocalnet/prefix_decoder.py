"""Decoding with text as a prefix: it grows while speech that was spoken keeps its positions."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.repetition import RepetitionPenalty
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.streaming import SpeechChunk, TextState, cut_at_eos
from lightning_modules.talker.vocalnet.llama_layers import GrowingKeys, extend
from lightning_modules.talker.vocalnet.sizes import VocalNetSizes, check_width

# What the released decoders do if nothing else is asked for.
RULE_OF_STREAMING = RepetitionPenalty(factor=2.0, window=6, ahead=True)
RULE_OF_WHOLE_TEXT = RepetitionPenalty(factor=2.0, window=5, ahead=False)


@dataclass(frozen=True)
class PrefixParts:
    """The parts of a talker that decode.

    Attributes:
        sizes: Their sizes.
        embedding: Embeds speech tokens and special ones.
        encoder: Layers that read text alone.
        predictors: Layers and output head of the next token, then of each token behind it.
        end_of_text: Stands behind the last text state, ``(H,)``.
    """

    sizes: VocalNetSizes
    embedding: nn.Embedding
    encoder: nn.ModuleList
    predictors: Sequence[tuple[Sequence[nn.Module] | nn.ModuleList, Callable[[Tensor], Tensor]]]
    end_of_text: Tensor


class PrefixReader:
    """Pulls text states from a thinker that may still be writing.

    Args:
        text: Text states in order.
        num_skipped: States at the beginning that are left out.
        parts: Say how wide a state is, and what stands behind the last one.
    """

    def __init__(self, text: Iterable[TextState], num_skipped: int, parts: PrefixParts) -> None:
        self.text = islice(text, num_skipped, None)
        self.sizes, self.end_of_text = parts.sizes, parts.end_of_text
        self.ended = False

    def read(self, num_states: int | None) -> Tensor:
        """Give the next hidden states, all that are left if None, and the end of the text if it comes: ``(n, H)``."""
        states = [state.hidden.to(self.end_of_text) for state in islice(self.text, num_states)]
        for state in states[:1]:
            check_width(state, self.sizes)
        self.ended = num_states is None or len(states) < num_states
        return torch.stack(states + [self.end_of_text] * self.ended)


class PrefixDecoder:
    """Caches of all layers, and the tokens so far.

    There is no static path as other talkers have one: the text prefix grows ahead of speech, so that a block attends to
    two caches of changing length, and the layers are those of transformers, as in the released decoder.

    Args:
        parts: What decodes.
        decoding: How to; its number of steps is given.
    """

    def __init__(self, parts: PrefixParts, decoding: Decoding) -> None:
        assert decoding.num_steps is not None
        self.parts = parts
        self.tokens_per_pass = math.ceil(parts.sizes.block_size / decoding.num_steps)
        self.predictors = parts.predictors[: self.tokens_per_pass]
        self.rule = decoding.repetition or (RULE_OF_WHOLE_TEXT if decoding.whole_text else RULE_OF_STREAMING)
        self.sampler = decoding.sampler or TokenSampler()
        vocabulary, device = parts.sizes.vocabulary, parts.embedding.weight.device
        self.eos_id = vocabulary.eos_id
        self.never_spoken = torch.tensor(vocabulary.never_spoken, device=device)
        self.generator = torch.Generator(device).manual_seed(decoding.seed)
        self.encoder_keys = GrowingKeys()
        self.text_keys = [GrowingKeys() for _ in self.predictors]
        self.speech_keys = [GrowingKeys(prefix) for prefix in self.text_keys]
        self.begin = torch.tensor([vocabulary.bos_id], device=device)
        self.spoken = torch.tensor([vocabulary.sos_id], device=device)
        self.num_before_text = 1
        self.ended = False

    @property
    def num_spoken(self) -> int:
        """Tokens so far, EOS included."""
        return len(self.spoken) - 1

    def read_text(self, states: Tensor) -> None:
        """Append text to the prefix, ``(n, H)``; text sees no speech.

        All predictors read the states of the next token's layers there, as in the released decoder; in training each
        reads those of the one before. Tokens spoken earlier count no more as repeated.
        """
        x = extend(self.parts.encoder, states[None], self.encoder_keys)
        if not len(self.text_keys[0]):
            x = torch.cat([self.parts.embedding(self.begin)[None].to(x.dtype), x], dim=1)
        x = extend(self.predictors[0][0], x, self.text_keys[0])
        for (layers, _), keys in zip(self.predictors[1:], self.text_keys[1:], strict=True):
            extend(layers, x, keys)
        self.num_before_text = len(self.spoken)

    def step(self, max_tokens: int | None) -> None:
        """Predict a token with each predictor, up to EOS.

        The pass reads as many tokens as a whole pass gives. Where ``max_tokens`` cut the pass before it short, some are
        read again, as in the released decoder.

        Args:
            max_tokens: Where to stop; at the last predictor if None.
        """
        x = self.parts.embedding(self.spoken[-self.tokens_per_pass :])[None]
        for ahead, (layers, head) in enumerate(self.predictors[:max_tokens]):
            x = extend(layers, x, self.speech_keys[ahead])
            token = self._choose(head(x[0, -1]).float(), ahead)
            self.spoken = torch.cat([self.spoken, token])
            if int(token) == self.eos_id:
                self.ended = True
                return

    def _choose(self, logits: Tensor, ahead: int) -> Tensor:
        if ahead == 0 or self.rule.ahead:
            logits = self.rule(logits, self.spoken[self.num_before_text :])
        return self.sampler(logits.index_fill(0, self.never_spoken, -torch.inf)[None], self.generator)[0]


@torch.no_grad()
def stream_with_prefix(
    parts: PrefixParts, text: Iterable[TextState], num_skipped: int, max_blocks: int, decoding: Decoding
) -> Iterator[SpeechChunk]:
    """Speak block by block: each further block reads a few more text states, until the text has ended.

    Args:
        parts: What decodes.
        text: Text states in order.
        num_skipped: States at the beginning that are left out.
        max_blocks: Where speech is cut off if no EOS comes.
        decoding: How to decode; its number of steps is given.

    Yields:
        The speech tokens of each block, up to the first EOS.
    """
    decoder = PrefixDecoder(parts, decoding)
    reader = PrefixReader(text, num_skipped, parts)
    block_size = parts.sizes.block_size
    num_states = None if decoding.whole_text else parts.sizes.text_per_block
    for block in range(max_blocks):
        num_forwards, end = 0, (block + 1) * block_size
        if not reader.ended:
            decoder.read_text(reader.read(num_states))
            num_forwards += 1
        while not decoder.ended and decoder.num_spoken < end:
            # While text may follow, a block ends where it ends; later, a pass may reach into the next one.
            decoder.step(None if reader.ended else end - decoder.num_spoken)
            num_forwards += 1
        codes, ended = cut_at_eos(decoder.spoken[1 + block * block_size : 1 + end], decoder.eos_id)
        is_last = ended or block == max_blocks - 1
        yield SpeechChunk(codes, num_forwards, ended, is_last)
        if is_last:
            return
