"""Muon for the matrices of hidden layers and AdamW for all else, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

# The weight of an output head is a list of class vectors, as an embedding is, and not a map between hidden states.
HEADS = ("head", "lm_head")


def split_hidden_matrices(part: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters of a module.

    Args:
        part: Any module.

    Returns:
        The weights of its linear layers except output heads, and all other parameters.
    """
    hidden = {
        id(layer.weight)
        for name, layer in part.named_modules()
        if isinstance(layer, nn.Linear) and name.split(".modules_to_save.")[0].rsplit(".", 1)[-1] not in HEADS
    }
    parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if id(parameter) in hidden]
    return matrices, [parameter for parameter in parameters if id(parameter) not in hidden]


class MuonAdamW(Optimizer):
    """One optimizer for Lightning and schedulers that holds two, which share their parameter groups with it.

    Muon's updates are scaled to the size of AdamW's, so that both take the same learning rates.

    Args:
        muon_groups: Parameter groups of matrices, each with ``lr`` and ``weight_decay``.
        adamw_groups: Parameter groups of all else, each with ``lr`` and ``weight_decay``.
        betas: Decay rates of AdamW's running means.
        fused: Run AdamW in one kernel.

    Reference: Muon, as in torch.optim; the scaling is that of arXiv 2502.16982.
    """

    def __init__(
        self,
        muon_groups: Iterable[dict[str, Any]],
        adamw_groups: Iterable[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.98),
        fused: bool = False,
    ) -> None:
        self.muon = Muon(list(muon_groups), adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(list(adamw_groups), betas=betas, fused=fused)
        super().__init__(self.muon.param_groups + self.adamw.param_groups, {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Give the inner optimizers the groups that schedulers change."""
        count = len(self.muon.param_groups)
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:count], self.param_groups[count:]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with each optimizer.

        Args:
            closure: Computes the gradients and returns the loss.

        Returns:
            The loss, if there is a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Give the states of both optimizers."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of both optimizers."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self.muon.param_groups + self.adamw.param_groups
        self._share_groups()
