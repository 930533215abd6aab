"""Linear warm-up and cosine decay, with AdamW or with Muon beside it."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from lightning_modules.errors import UserError
from lightning_modules.training.muon_adamw import MuonAdamW, split_hidden_matrices

BETAS = (0.9, 0.98)


def warmup_cosine(step: int, warmup_steps: int, max_steps: int, final_share: float = 0.0) -> float:
    """Give the share of the peak learning rate at a step: linear up to 1, then cosine to ``final_share`` at the end."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def optimizer_with_warmup_cosine(
    module: L.LightningModule,
    parts: Sequence[tuple[nn.Module, float]],
    weight_decay: float,
    warmup_steps: int,
    muon: bool = False,
    final_share: float = 0.0,
    fused: bool = False,
) -> OptimizerLRScheduler:
    """Make optimizer and schedule for ``configure_optimizers``: matrices decay, biases and norms do not.

    Args:
        module: The attached module, whose trainer knows the number of optimizer steps.
        parts: Disjoint parts of the module that train, or the module itself, each with its peak learning rate.
        weight_decay: Decoupled weight decay of the parameters with two or more dimensions.
        warmup_steps: Steps of linear warm-up.
        muon: Train the matrices of hidden layers with Muon, all else with AdamW.
        final_share: Share of the peak learning rate at the end; 1 keeps it constant after the warm-up.
        fused: Let AdamW run in one kernel, five times as fast on a CPU; only for modules that clip gradients by
            themselves, since Lightning refuses to clip for a fused optimizer under mixed precision.

    Returns:
        The mapping of Lightning with an optimizer and a step-wise scheduler.

    Raises:
        UserError: If the trainer has no finite number of steps.
    """
    max_steps = module.trainer.estimated_stepping_batches
    if not math.isfinite(max_steps):
        raise UserError("the cosine schedule needs an end; set trainer.max_steps or trainer.max_epochs")
    muon_groups: list[dict[str, Any]] = []
    adamw_groups: list[dict[str, Any]] = []
    for part, learning_rate in parts:
        hidden, others = split_hidden_matrices(part)
        if not muon:
            hidden, others = [], [*hidden, *others]
        matrices, vectors = [p for p in others if p.dim() >= 2], [p for p in others if p.dim() < 2]
        muon_groups.append({"params": hidden, "weight_decay": weight_decay, "lr": learning_rate})
        adamw_groups.append({"params": matrices, "weight_decay": weight_decay, "lr": learning_rate})
        adamw_groups.append({"params": vectors, "weight_decay": 0.0, "lr": learning_rate})
    muon_groups, adamw_groups = ([g for g in groups if g["params"]] for groups in (muon_groups, adamw_groups))
    optimizer: torch.optim.Optimizer
    if not adamw_groups:  # LoRA matrices are matrices all
        optimizer = torch.optim.Muon(muon_groups, adjust_lr_fn="match_rms_adamw")
    elif muon_groups:
        optimizer = MuonAdamW(muon_groups, adamw_groups, BETAS, fused)
    else:
        optimizer = torch.optim.AdamW(adamw_groups, betas=BETAS, fused=fused)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warmup_steps, int(max_steps), final_share)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
