"""Two optimizers in one: schedules reach both, and a restored state continues the same training."""

import pytest
import torch
from torch import nn

from lightning_modules.training.muon_adamw import MuonAdamW, split_hidden_matrices


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.embed(ids)).tanh())


def build() -> tuple[Net, MuonAdamW, torch.optim.lr_scheduler.LambdaLR]:
    torch.manual_seed(0)
    net = Net()
    matrices, others = split_hidden_matrices(net)
    muon_groups = [{"params": matrices, "lr": 0.02, "weight_decay": 0.0}]
    adamw_groups = [{"params": others, "lr": 0.01, "weight_decay": 0.0}]
    optimizer = MuonAdamW(muon_groups, adamw_groups)
    return net, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)


def train(net: Net, optimizer: MuonAdamW, scheduler: torch.optim.lr_scheduler.LambdaLR, num_steps: int) -> float:
    ids = torch.arange(5)
    loss = torch.tensor(0.0)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(ids), ids)
        loss.backward()
        optimizer.step()
        scheduler.step()
    return float(loss.detach())


def test_hidden_matrices_are_linear_weights_without_heads_and_embeddings() -> None:
    net = Net()
    matrices, others = split_hidden_matrices(net)
    assert [id(matrix) for matrix in matrices] == [id(net.hidden.weight)]
    assert {id(other) for other in others} == {id(net.embed.weight), id(net.hidden.bias), id(net.head.weight)}


def test_it_learns_and_the_schedule_reaches_both() -> None:
    net, optimizer, scheduler = build()
    first = train(net, optimizer, scheduler, 1)
    assert train(net, optimizer, scheduler, 100) < first / 2
    assert optimizer.muon.param_groups[0]["lr"] == pytest.approx(0.02 * 0.99**101)
    assert optimizer.adamw.param_groups[0]["lr"] == pytest.approx(0.01 * 0.99**101)


def test_a_restored_optimizer_continues_as_if_never_stopped() -> None:
    whole = build()
    train(*whole, 7)
    first = build()
    train(*first, 3)
    second = build()
    for restored, saved in zip(second, first, strict=True):
        restored.load_state_dict(saved.state_dict())
    train(*second, 4)
    for value, expected in zip(second[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(value, expected)
