"""Losses of the talkers as pure functions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_cross_entropy(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, is_scored: Tensor
) -> tuple[Tensor, Tensor]:
    """Average the cross-entropy and the accuracy over the scored positions; the head runs on no others.

    Args:
        head: Gives logits ``(n, V)`` for hidden states ``(n, width)``.
        hidden: ``(B, L, width)``.
        targets: Token ids, ``(B, L) int64``; read only where scored.
        is_scored: ``(B, L) bool``.

    Returns:
        Cross-entropy in nats a token (0 if nothing is scored, with a gradient of 0), and accuracy.

    Reference: arXiv 2602.08607, loss on masked positions only.
    """
    logits, scored_targets = head(hidden[is_scored]).float(), targets[is_scored]
    if scored_targets.numel() == 0:
        return hidden.sum() * 0.0 + logits.sum(), torch.zeros((), device=hidden.device)
    loss = F.cross_entropy(logits, scored_targets)
    accuracy = (logits.detach().argmax(-1) == scored_targets).float().mean()
    return loss, accuracy
