"""Transcription of the query at the adaptor, by connectionist temporal classification over the text tokens.

The adaptor's outputs are scored with the output embedding of the language model, as if it had no layers. The audio
embedding of a word then lies close to that word's token embedding, so that the language model copies what it hears as
easily as what it reads. A small model that is trained from scratch hardly learns to copy otherwise.

Reference: Graves et al., Connectionist Temporal Classification, ICML 2006.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_modules.talker.network.transfers import send_to


def transcription_loss(logits: Tensor, lengths: Tensor, transcripts: Sequence[Sequence[int]], blank_id: int) -> Tensor:
    """Compute the negative log-likelihood of the transcripts, in nats per token.

    Args:
        logits: ``(B, A, V)`` token scores of A audio embeddings.
        lengths: ``(B,) int64`` audio embeddings of each row; on the host, or it waits for them.
        transcripts: B rows of token ids; a row with more tokens than audio embeddings counts as zero, with a warning.
        blank_id: Token id that stands for "nothing new".

    Returns:
        ``() float32``, mean over the rows.
    """
    targets = send_to(logits.device, torch.tensor([token_id for row in transcripts for token_id in row]))
    lengths, target_lengths = lengths.cpu(), torch.tensor([len(row) for row in transcripts])
    num_too_long = int((target_lengths > lengths).sum())
    if num_too_long:
        warnings.warn(
            f"{num_too_long} of {len(transcripts)} transcripts have more tokens than their audio has embeddings and "
            "teach nothing: stack fewer frames in the adaptor, or train a tokenizer with longer tokens.",
            stacklevel=2,
        )
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
    return nn.functional.ctc_loss(log_probs, targets, lengths, target_lengths, blank=blank_id, zero_infinity=True)


def best_transcripts(logits: Tensor, lengths: Tensor, blank_id: int) -> list[list[int]]:
    """Take the best token of each audio embedding, merge repeats and drop blanks.

    Args:
        logits: ``(B, A, V)`` token scores of A audio embeddings.
        lengths: ``(B,) int64`` audio embeddings of each row.
        blank_id: Token id that stands for "nothing new".

    Returns:
        B rows of token ids.
    """
    rows = zip(logits.argmax(dim=-1).cpu(), lengths.tolist(), strict=True)
    merged = [row[:length].unique_consecutive().tolist() for row, length in rows]
    return [[token_id for token_id in row if token_id != blank_id] for row in merged]
