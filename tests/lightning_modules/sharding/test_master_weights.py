"""Weights that train are kept in float32; frozen ones in what they were loaded in."""

import pytest
import torch
from torch import nn

from lightning_modules.sharding.master_weights import keep_trained_in_float32


def make_part() -> nn.Linear:
    torch.manual_seed(0)
    part = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    nn.init.normal_(part.weight, std=0.1)
    return part


def changed_share(part: nn.Linear) -> float:
    """Train a few small steps of AdamW and give the share of weights that moved."""
    before = part.weight.detach().clone()
    optimizer = torch.optim.AdamW(part.parameters(), lr=1e-5, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            part(torch.eye(64)).float().square().mean().backward()
        optimizer.step()
    return float((part.weight != before).float().mean())


def test_bfloat16_weights_lose_the_steps_that_float32_ones_take() -> None:
    assert changed_share(make_part()) < 0.1
    part = make_part()
    with pytest.warns(UserWarning, match="4,096 weights were loaded in 16 bits but train: they are kept in float32"):
        keep_trained_in_float32(part, "bf16-mixed")
    assert part.weight.dtype == torch.float32
    assert changed_share(part) > 0.99


def test_frozen_weights_stay_as_they_are() -> None:
    part = make_part().requires_grad_(False)
    keep_trained_in_float32(part, "32-true")
    assert part.weight.dtype == torch.bfloat16


def test_a_precision_that_undoes_it_is_told() -> None:
    with pytest.warns(UserWarning, match="trainer.precision bf16-true keeps weights in 16 bits"):
        keep_trained_in_float32(nn.Linear(2, 2), "bf16-true")
