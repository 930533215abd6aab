"""A LightningModule that trains several parts side by side, each with its own learning rate, gradient norm and run."""

import torch
from torch import nn

from lightning_modules.sharding.shardable import ShardableModule
from lightning_modules.sharding.shards import clip_gradients
from lightning_modules.training.module_with_runs import ModuleWithRuns
from lightning_modules.training.optimization import optimizer_with_warmup_cosine


class TrainedParts(ModuleWithRuns, ShardableModule):
    """Optimizer and gradient clipping over named parts.

    Attributes:
        learning_rate: Peak learning rate.
        part_learning_rates: Other peak learning rates, by part.
        final_learning_rate_share: Where the cosine ends, as a share of the peak.
        weight_decay: Weight decay of matrices.
        warmup_steps: Steps of linear warm-up.
        gradient_clip_norm: Largest gradient norm of each part.
    """

    learning_rate: float
    part_learning_rates: dict[str, float]
    final_learning_rate_share: float
    weight_decay: float
    warmup_steps: int
    gradient_clip_norm: float

    def trained_parts(self) -> dict[str, nn.Module]:
        """Give what trains, by the name of its TensorBoard run."""
        raise NotImplementedError

    def configure_optimizers(self) -> dict:
        """AdamW with warm-up and cosine; see :func:`optimizer_with_warmup_cosine`."""
        rates = self.part_learning_rates
        parts = [(part, rates.get(name, self.learning_rate)) for name, part in self.trained_parts().items()]
        fused = self.trainer.precision != "16-mixed"  # there gradients are unscaled inside, behind the clipping
        return optimizer_with_warmup_cosine(
            self, parts, self.weight_decay, self.warmup_steps, self.muon, self.final_learning_rate_share, fused
        )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each part's gradients by their own norm: no part slows another down."""
        for name, part in self.trained_parts().items():
            norm = clip_gradients(list(part.parameters()), self.gradient_clip_norm)
            if self.should_log:
                self.log_scalars(name, {"train/grad_norm": norm}, self.global_step)
