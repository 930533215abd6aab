"""Scores over a large vocabulary, a few rows at a time: 1,300 rows of 152,000 logits are 0.8 GB in float32."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits that are in memory at once, in float32; several tensors of that size are, in the backward pass.
PIECE_BYTES = 64 * 2**20


def score_in_pieces(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, vocab_size: int, piece_bytes: int = PIECE_BYTES
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy, and find where the target is the most probable token.

    If there are several pieces, the logits of each are computed again in the backward pass.

    Args:
        head: Gives logits ``(m, V)`` for hidden states ``(m, width)``.
        hidden: ``(n, width)``.
        targets: Token ids, ``(n,) int64``.
        vocab_size: V.
        piece_bytes: Size of the logits of a piece in float32.

    Returns:
        Sum of the cross-entropies in nats, ``() float32``, and whether each target is the most probable token,
        ``(n,) bool``.
    """

    def score(piece: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(piece).float()
        return nn.functional.cross_entropy(logits, wanted, reduction="sum"), logits.detach().argmax(dim=-1) == wanted

    num_rows = max(1, piece_bytes // (4 * vocab_size))
    if len(targets) <= num_rows:
        return score(hidden, targets)
    pairs = zip(hidden.split(num_rows), targets.split(num_rows), strict=True)
    scores = [checkpoint(score, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
    return torch.stack([nll for nll, _ in scores]).sum(), torch.cat([is_right for _, is_right in scores])
