"""Optimizer and schedule: the course of the learning rate, which parameters decay, which settings are refused."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_modules.errors import UserError
from lightning_modules.training.optimization import optimizer_with_warmup_cosine, warmup_cosine
from lightning_modules.training.optimizer_settings import check_optimizer_settings


def test_schedule_rises_then_falls_to_zero():
    shares = [warmup_cosine(step, 10, 110) for step in range(111)]
    assert shares[0] == pytest.approx(0.1) and max(shares) == shares[10] == 1.0
    assert shares[60] == pytest.approx(0.5) and shares[110] == pytest.approx(0.0)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert warmup_cosine(0, 0, 0) == pytest.approx(1.0)


class Attached(L.LightningModule):
    def __init__(self, max_steps: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self._max_steps = max_steps

    @property
    def trainer(self):
        return type("Trainer", (), {"estimated_stepping_batches": self._max_steps})()


def test_matrices_decay_and_parts_have_their_own_rate():
    module = Attached(10)
    module.second.bias.requires_grad_(False)
    settings = optimizer_with_warmup_cosine(module, [(module.first, 1e-2), (module.second, 1e-3)], 0.1, 1)
    groups = settings["optimizer"].param_groups
    assert [(group["initial_lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (1e-2, 0.1, 1),
        (1e-2, 0.0, 1),
        (1e-3, 0.1, 1),
    ]
    assert isinstance(settings["optimizer"], torch.optim.AdamW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": {"talker_learning_rates.mdm": 0.0}}, "talker_learning_rates.mdm is 0.0; give .* above 0"),
        ({"learning_rates": {"learning_rate": float("nan")}}, "learning_rate is nan"),
        ({"weight_decay": -0.01}, "weight_decay is -0.01; give .* at least 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"seed": -1}, "seed is -1; give a number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_settings_that_no_training_can_use_are_refused(settings: dict[str, Any], message: str) -> None:
    usable = {"learning_rates": {"learning_rate": 1e-3}, "weight_decay": 0.0, "warmup_steps": 0, "seed": 2**32 - 1}
    check_optimizer_settings(**usable)
    with pytest.raises(UserError, match=message):
        check_optimizer_settings(**{**usable, **settings})


def test_an_endless_trainer_is_refused() -> None:
    with pytest.raises(ValueError, match="max_steps"):
        optimizer_with_warmup_cosine(Attached(float("inf")), [], 0.0, 1)


def test_rates_may_end_at_a_share_of_their_peak_or_stay_there() -> None:
    assert warmup_cosine(110, 10, 110, 0.1) == pytest.approx(0.1)
    assert warmup_cosine(60, 10, 110, 0.1) == pytest.approx(0.55)
    assert {warmup_cosine(step, 10, 110, 1.0) for step in range(10, 111)} == {1.0}
    assert warmup_cosine(4, 10, 110, 1.0) == 0.5


def test_matrices_alone_are_trained_by_muon_alone() -> None:
    """LoRA leaves no vector to train, and an optimizer of nothing is refused by torch."""
    module = Attached(10)
    for layer in (module.first, module.second):
        layer.bias.requires_grad_(False)
    optimizer = optimizer_with_warmup_cosine(module, [(module, 1e-2)], 0.1, 1, muon=True)["optimizer"]
    before = module.first.weight.detach().clone()
    module.first(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert isinstance(optimizer, torch.optim.Muon) and not torch.equal(module.first.weight, before)
