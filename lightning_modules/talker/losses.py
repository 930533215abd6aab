"""Losses of the talkers as pure functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.talker.network.transfers import send_to


@dataclass(frozen=True)
class LossTerm:
    """A mean, and how many things it averages over: several devices weigh their means by that.

    Attributes:
        mean: A scalar.
        count: Tokens (or rows) that ``mean`` averages over, a scalar on any device; 0 where there is nothing.
        weight: Its weight in the loss.
    """

    mean: Tensor
    count: Tensor
    weight: float = 1.0


def add_terms(terms: Sequence[LossTerm]) -> Tensor:
    """Add up weighted means, a scalar: the loss of one device alone."""
    weighted = [term.mean if term.weight == 1.0 else term.weight * term.mean for term in terms]
    return sum(weighted[1:], weighted[0])


def positions_of(is_chosen: Tensor, device: torch.device, num_chosen: int | None = None) -> Tensor:
    """Give the positions that a mask chooses, in row-major order.

    The host has to know how many there are. It does for a mask of its own; for one on a device it would wait for the
    answer, unless it has counted before.

    Args:
        is_chosen: ``(B, L) bool``, on the host if ``num_chosen`` is left out.
        device: Where the positions are wanted.
        num_chosen: True ones in ``is_chosen``, if that lives on the device.

    Returns:
        Indices into the flattened mask, ``(n,) int64``.
    """
    if num_chosen is None:
        return send_to(device, is_chosen.flatten().nonzero()[:, 0])
    return torch.nonzero_static(is_chosen.flatten(), size=num_chosen)[:, 0]


def masked_cross_entropy(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    is_scored: Tensor,
    num_scored: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Average the cross-entropy and the accuracy over the scored positions; the head runs on no others.

    Args:
        head: Gives logits ``(n, V)`` for hidden states ``(n, width)``.
        hidden: ``(B, L, width)``.
        targets: Token ids, ``(B, L) int64``; read only where scored.
        is_scored: ``(B, L) bool``, on the host if ``num_scored`` is left out.
        num_scored: See :func:`positions_of`.

    Returns:
        Cross-entropy in nats per token (0 if nothing is scored, with a gradient of 0), and accuracy.

    Reference: arXiv 2602.08607, loss on masked positions only.
    """
    scored = positions_of(is_scored, hidden.device, num_scored)
    logits = head(hidden.flatten(0, 1).index_select(0, scored)).float()
    scored_targets = targets.flatten().index_select(0, scored)
    if scored_targets.numel() == 0:
        return hidden.sum() * 0.0 + logits.sum(), token_accuracy(logits, scored_targets)
    loss = F.cross_entropy(logits, scored_targets)
    return loss, token_accuracy(logits, scored_targets)


def token_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Give the share of positions whose most likely token is right, a scalar; 0 if there are none.

    Args:
        logits: ``(n, V)``.
        targets: Token ids, ``(n,) int64``.
    """
    return (logits.detach().argmax(dim=-1) == targets).float().sum() / max(1, targets.numel())
