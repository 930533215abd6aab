"""Means and lists over all devices that train together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.talker.losses import LossTerm, add_terms


def mean_over_ranks(terms: Sequence[LossTerm], num_ranks: int) -> Tensor:
    """Add up loss terms such that the mean over the devices is the loss of all their batches as one.

    Strategies that train one model on several devices average gradients over them. A mean over the tokens of one device
    counts too much where that device has fewer tokens than others, so each is weighted by its share of them.

    Args:
        terms: Means on this device, in the same order on every device.
        num_ranks: Devices that train together.

    Returns:
        This device's loss, a scalar.
    """
    if num_ranks == 1:
        return add_terms(terms)
    device = terms[0].mean.device
    counts = torch.stack([term.count.detach().to(device, torch.int64, non_blocking=True) for term in terms])
    total = counts.clone()
    torch.distributed.all_reduce(total)
    shares = (counts * num_ranks / total.clamp(min=1)).to(torch.float32)
    return torch.stack([term.weight * share * term.mean for term, share in zip(terms, shares, strict=True)]).sum()


def gather_over_ranks(value: Any, num_ranks: int) -> list[Any]:
    """Collect a picklable value of every device, in the order of their ranks; called on all of them."""
    if num_ranks == 1:
        return [value]
    gathered: list[Any] = [None] * num_ranks
    torch.distributed.all_gather_object(gathered, value)
    return gathered
