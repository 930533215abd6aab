"""A LightningModule whose parts may be split over devices."""

import contextlib
from collections.abc import Iterator

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from lightning_modules.errors import UserError
from lightning_modules.sharding.master_weights import keep_trained_in_float32
from lightning_modules.sharding.shards import (
    Shard,
    average_whole_gradients,
    gather,
    release,
    release_roots,
    split,
    take_from_first,
)
from lightning_modules.sharding.strategy import FullyShardedStrategy


class ShardableModule(L.LightningModule):
    """Keeps what trains in float32, and splits its parts under :class:`FullyShardedStrategy`.

    What is not split is whole on each device, where its gradients are averaged before each step. In validation and test
    all weights are whole: devices decode replies of different lengths, and one may have a batch more than another.
    """

    muon = False  # whether Muon trains anything
    _has_split = False

    def shards(self) -> list[Shard]:
        """Name the parts to split."""
        return []

    @property
    def is_split(self) -> bool:
        """Whether a trainer splits this module."""
        return self._trainer is not None and isinstance(self.trainer.strategy, FullyShardedStrategy)

    def check_strategy(self, strategy: Strategy) -> None:
        """Refuse a strategy that cannot train this module.

        Raises:
            UserError: If it is Lightning's own one for FSDP2, which would split nothing by its defaults and could not
                resume from a checkpoint that leaves out what is frozen; or if matrices that Muon trains are split.
        """
        if not isinstance(strategy, FullyShardedStrategy):
            if isinstance(strategy, ModelParallelStrategy):
                raise UserError(
                    "ModelParallelStrategy cannot resume a training with frozen parts; set strategy.class_path to "
                    "lightning_modules.sharding.strategy.FullyShardedStrategy, which extends it"
                )
        elif self.muon:
            raise UserError("muon needs whole matrices; set module.init_args.muon to false, or trainer.strategy to ddp")

    def configure_model(self) -> None:
        """Prepare the weights, and split the parts once; see :meth:`check_strategy` for what is refused."""
        self.check_strategy(self.trainer.strategy)
        keep_trained_in_float32(self, str(self.trainer.precision))
        if self.is_split and not self._has_split:
            mesh = self.device_mesh["data_parallel"]
            split(self.shards(), mesh, torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None)
            take_from_first(self, mesh)
            self._has_split = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average the gradients of what is whole."""
        if self.is_split:
            release_roots(self.shards())
            average_whole_gradients(self.parameters())

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Within this context, hold all weights whole, so that devices may do different numbers of passes."""
        if self.is_split:
            gather(self.shards())
        try:
            yield
        finally:
            if self.is_split:
                release(self.shards())

    def on_validation_start(self) -> None:
        """Gather the weights."""
        if self.is_split:
            gather(self.shards())

    def on_validation_end(self) -> None:
        """Split them again."""
        if self.is_split:
            release(self.shards())

    def on_test_start(self) -> None:
        """Gather the weights."""
        self.on_validation_start()

    def on_test_end(self) -> None:
        """Split them again."""
        self.on_validation_end()
