"""The optimiser recipe: its schedule, and which parameters decay."""

import lightning as L
import pytest
import torch
from torch import nn

from lightning_modules.training.optimization import optimizer_with_warmup_cosine, warmup_cosine


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


def test_an_endless_trainer_is_an_error():
    with pytest.raises(ValueError, match="max_steps"):
        optimizer_with_warmup_cosine(Attached(float("inf")), [], 0.0, 1)


def test_rates_may_end_at_a_share_of_their_peak_or_stay_there() -> None:
    assert warmup_cosine(110, 10, 110, 0.1) == pytest.approx(0.1)
    assert warmup_cosine(60, 10, 110, 0.1) == pytest.approx(0.55)
    assert {warmup_cosine(step, 10, 110, 1.0) for step in range(10, 111)} == {1.0}
    assert warmup_cosine(4, 10, 110, 1.0) == 0.5
