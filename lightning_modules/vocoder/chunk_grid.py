"""Streaming of decoders that see later tokens: chunk borders lie on a grid that does not depend on the pushes."""

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.vocoder.base import VocoderStream


class ChunkGridStream(VocoderStream):
    """Decodes one chunk of the grid as soon as the tokens behind it that it looks at are there.

    The end of a chunk follows from its begin alone, and what is left at the end of the utterance, fewer tokens than a
    chunk with its look-ahead, is the last one. So pushes of any sizes call the decoder with the same tokens in the same
    order.

    Args:
        lookahead_tokens: Tokens behind a chunk that it waits for.
        codebook_size: Number of distinct tokens.
        device: Where the decoder is.
    """

    def __init__(self, lookahead_tokens: int, codebook_size: int, device: torch.device) -> None:
        self.lookahead_tokens, self.codebook_size, self.device = lookahead_tokens, codebook_size, device
        self.tokens = torch.zeros(0, dtype=torch.long, device=device)
        self.num_voiced = 0  # tokens of the chunks that have been decoded
        self.ended = False

    @abstractmethod
    def chunk_end(self, begin: int) -> int:
        """Give the end of the chunk that begins at a token of the grid."""

    @abstractmethod
    def voice(self, begin: int, end: int, num_seen: int) -> Tensor:
        """Decode tokens ``begin .. end - 1`` from the first ``num_seen`` ones.

        Args:
            begin: First token of the chunk.
            end: Behind its last token: the grid's, or the end of the utterance.
            num_seen: ``end + lookahead_tokens``, or ``end`` for the last chunk of the utterance.

        Returns:
            Samples that no later token can change, ``(m,) float``.
        """

    @torch.no_grad()
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Take the next tokens ``(n,)`` and return samples ``(m,)``; see :meth:`VocoderStream.push`."""
        if self.ended:
            raise UserError("this vocoder stream has ended; open a new one with stream()")
        if tokens.dim() != 1:
            raise UserError(f"tokens must be one row (n,), got shape {tuple(tokens.shape)}")
        refuse_outside(tokens, self.codebook_size)
        self.tokens = torch.cat([self.tokens, tokens.to(self.device, torch.long)])
        self.ended = last
        pieces = [torch.zeros(0, device=self.device)]
        while (end := self.chunk_end(self.num_voiced)) + self.lookahead_tokens <= len(self.tokens):
            pieces.append(self._voice_next(end, end + self.lookahead_tokens))
        if last and self.num_voiced < len(self.tokens):
            pieces.append(self._voice_next(len(self.tokens), len(self.tokens)))
        return torch.cat([piece.float() for piece in pieces])

    def _voice_next(self, end: int, num_seen: int) -> Tensor:
        begin, self.num_voiced = self.num_voiced, end
        return self.voice(begin, end, num_seen)


def refuse_outside(tokens: Tensor, codebook_size: int) -> None:
    """Refuse tokens that are not of the codebook; lookups on a GPU would end the process.

    Raises:
        UserError: If a token lies outside.
    """
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < codebook_size:
        raise UserError(
            f"tokens must lie in 0..{codebook_size - 1}, got {int(tokens.min())}..{int(tokens.max())}; "
            "strip BOS, EOS and other special tokens before decoding"
        )
