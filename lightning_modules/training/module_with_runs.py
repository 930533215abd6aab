"""A LightningModule that logs to one TensorBoard run per part that trains."""

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor


class ModuleWithRuns(L.LightningModule):
    """Logs each part under the same tags to a run of its own, so that the curves of parts lie over each other.

    Attributes:
        shown_losses: Loss of each part in the newest step, a scalar on its device, for a progress bar to read when it
            is drawn. Lightning reads what is logged for its own bar after each step, for which the host waits.
    """

    log_every_n_steps: int

    def __init__(self) -> None:
        super().__init__()
        self.shown_losses: dict[str, Tensor] = {}

    def log_scalars(self, run_name: str, scalars: dict[str, Tensor | float], step: int) -> None:
        """Write scalars to the TensorBoard run of that name; does nothing where there is none."""
        if self._trainer is None or not self.trainer.is_global_zero:
            return
        values = {tag: float(torch.as_tensor(value).detach()) for tag, value in scalars.items()}
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and logger.name == run_name:
                logger.log_metrics(values, step)

    def show_loss(self, run_name: str, loss: Tensor) -> None:
        """Show a part's loss in the progress bar."""
        self.shown_losses[f"{run_name}/loss"] = loss.detach()

    @property
    def should_log(self) -> bool:
        """Whether this step is one of those whose metrics are logged, for which the host waits."""
        return self.global_step % self.log_every_n_steps == 0

    @property
    def num_ranks(self) -> int:
        """Processes that train together; 1 without a trainer."""
        return 1 if self._trainer is None else self.trainer.world_size
