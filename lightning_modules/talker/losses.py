"""Losses of the talkers as pure functions."""

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_cross_entropy(logits: Tensor, targets: Tensor, is_scored: Tensor) -> tuple[Tensor, Tensor]:
    """Average the cross-entropy and the accuracy over the scored positions.

    Args:
        logits: ``(B, L, V)``.
        targets: Token ids, ``(B, L) int64``; read only where scored.
        is_scored: ``(B, L) bool``.

    Returns:
        Cross-entropy in nats a token (0 if nothing is scored, with a gradient of 0), and accuracy.

    Reference: arXiv 2602.08607, loss on masked positions only.
    """
    scored_logits, scored_targets = logits[is_scored].float(), targets[is_scored]
    num_scored = scored_targets.numel()
    if num_scored == 0:
        return logits.sum() * 0.0, logits.new_zeros((), dtype=torch.float32)
    loss = F.cross_entropy(scored_logits, scored_targets)
    accuracy = (scored_logits.detach().argmax(-1) == scored_targets).float().mean()
    return loss, accuracy
