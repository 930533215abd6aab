"""Streaming from thinker to talker: text states come one by one, speech leaves in chunks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_modules.talker.network.anchors import SemanticAnchors, TextStates


class TextState(Protocol):
    """What a talker must know of one text token."""

    @property
    def hidden(self) -> Tensor:
        """Hidden state that predicted the token, ``(H,)``."""
        ...

    @property
    def embedding(self) -> Tensor:
        """Input embedding of the token, ``(E,)``."""
        ...


@dataclass(frozen=True)
class KnownTextState:
    """A text state that was written before; see :class:`TextState`."""

    hidden: Tensor
    embedding: Tensor


def states_of_row(text: TextStates, row: int) -> list[KnownTextState]:
    """Give the text states of one row of a batch, one by one."""
    num_tokens = int(text.lengths[row])
    return [KnownTextState(text.hidden[row, j], text.embedding[row, j]) for j in range(num_tokens)]


@dataclass(frozen=True)
class SpeechChunk:
    """Speech tokens that are final, as many as a block holds unless speech ends in it.

    Attributes:
        tokens: Codes without any special token, ``(n,) int64``.
        num_forwards: Forward passes of the network since the previous chunk.
        ended: True if EOS came in this block.
        is_last: True if nothing follows: EOS came, or the limit is reached.
        order: Step of its block that revealed each token, from 0, ``(n,) int64``; None where they come one by one.
        draft: The tokens before they were corrected, ``(n,) int64``; None if nothing corrects them.
    """

    tokens: Tensor
    num_forwards: int
    ended: bool
    is_last: bool
    order: Tensor | None = None
    draft: Tensor | None = None


class AnchorReader:
    """Gives the text of one block at a time, of a thinker that may still be writing.

    Args:
        anchors: Projects the text states.
        text: Text states in order. A sequence is known as a whole and projected at once; what else can be iterated over
            is pulled block by block.

    Attributes:
        is_known: Whether the text is known as a whole, so that no block waits for it.
    """

    def __init__(self, anchors: SemanticAnchors, text: Iterable[TextState]) -> None:
        self.anchors = anchors
        self.text = iter(text)
        self.is_known = isinstance(text, Sequence)
        self.num_known = len(text) if isinstance(text, Sequence) else 0
        self.known: Iterator[Tensor] = iter(())

    def next_block(self) -> Tensor:
        """Give the anchors of the next block, "no text" where the text has ended: ``(1, 1, Q, width)``."""
        found = next(self.known, None)
        if found is None:
            num_anchors = self.anchors.anchors_per_block
            self.known = iter(self._read(max(num_anchors, self.num_known)).split(num_anchors))
            found = next(self.known)
        return found[None, None]

    def _read(self, num_states: int) -> Tensor:
        """Give the anchors of so many states, of whole blocks, at least one: ``(n, width)``."""
        states, num_anchors = list(islice(self.text, num_states)), self.anchors.anchors_per_block
        no_text = self.anchors.no_text[None]
        num_missing = -len(states) % num_anchors if states else num_anchors
        if not states:
            return no_text.repeat(num_missing, 1)
        hidden = torch.stack([state.hidden for state in states])
        embedding = torch.stack([state.embedding for state in states])
        projected = self.anchors.project(hidden, embedding)
        return torch.cat([projected, no_text.to(projected.dtype).expand(num_missing, -1)]) if num_missing else projected


def cut_at_eos(tokens: Tensor, eos_id: int) -> tuple[Tensor, bool]:
    """Keep what comes before the first EOS.

    Args:
        tokens: ``(n,) int64``.
        eos_id: End of speech.

    Returns:
        The tokens before the first EOS, and whether there was one.
    """
    num_tokens, ended = count_until_eos(tokens.tolist(), eos_id)
    return (tokens[:num_tokens], True) if ended else (tokens, False)


def count_until_eos(tokens: Sequence[int], eos_id: int) -> tuple[int, bool]:
    """Count the tokens before the first EOS, and tell whether there was one."""
    return (tokens.index(eos_id), True) if eos_id in tokens else (len(tokens), False)


class ArrivingTokens:
    """Tokens on their way from the device to the host, which waits for these alone, not for what starts later.

    Args:
        tokens: ``(n,) int64``.
    """

    def __init__(self, tokens: Tensor) -> None:
        self._on_host = tokens.to("cpu", non_blocking=True)
        self._arrival = torch.cuda.Event() if tokens.is_cuda else None
        if self._arrival is not None:
            self._arrival.record(torch.cuda.current_stream(tokens.device))

    def read(self) -> list[int]:
        """Wait until they are there, and give them."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._on_host.tolist()


class DecodedBlock(NamedTuple):
    """The tokens of a block, and what they cost.

    Attributes:
        tokens: ``(n,) int64``, anything behind the first EOS.
        num_forwards: Forward passes of the network.
        order: As of :class:`SpeechChunk`.
        draft: As of :class:`SpeechChunk`.
    """

    tokens: Tensor
    num_forwards: int
    order: Tensor | None = None
    draft: Tensor | None = None


class BlockDecoder(ABC):
    """Decodes one block after the other, with what it keeps of those before."""

    @property
    def runs_ahead(self) -> bool:
        """Whether a block may start before the tokens of the one before are read.

        Then the host waits for neither, and no block needs to be closed.
        """
        return False

    @abstractmethod
    def decode_block(self, anchors: Tensor) -> DecodedBlock:
        """Decode the next block, whose anchors are ``(1, 1, Q, width)``."""

    def close_block(self) -> int:
        """Do what is left to do of a block that another one follows; gives the number of forward passes."""
        return 0


@torch.no_grad()
def stream_blocks(decoder: BlockDecoder, reader: AnchorReader, max_blocks: int, eos_id: int) -> Iterator[SpeechChunk]:
    """Decode until EOS, or until ``max_blocks`` are there, one chunk per block.

    Where the decoder runs ahead, behind the first chunk a block starts before the tokens of the one before are read:
    the device need not wait for the host, which reads one block while the device decodes the next. What starts behind
    the end of speech is dropped.

    Args:
        decoder: Gives the tokens of a block.
        reader: Gives its anchors.
        max_blocks: Where speech is cut off if no EOS comes.
        eos_id: End of speech.

    Yields:
        The speech tokens of each block, up to the first EOS.
    """
    runs_ahead = decoder.runs_ahead and reader.is_known
    ahead: DecodedBlock | None = None
    for index in range(max_blocks):
        block = decoder.decode_block(reader.next_block()) if ahead is None else ahead
        arriving = ArrivingTokens(block.tokens)
        # Behind the first chunk, since whatever makes sound of that one would wait for the second.
        starts_next = runs_ahead and 0 < index < max_blocks - 1
        ahead = decoder.decode_block(reader.next_block()) if starts_next else None
        num_codes, ended = count_until_eos(arriving.read(), eos_id)
        is_last, num_forwards = ended or index == max_blocks - 1, block.num_forwards
        if not is_last:
            num_forwards += decoder.close_block()
        order, draft = (None if one is None else one[:num_codes] for one in (block.order, block.draft))
        yield SpeechChunk(block.tokens[:num_codes], num_forwards, ended, is_last, order, draft)
        if is_last:
            return
