"""Tell whether a weight has changed since a copy of it was made.

Autograd counts the changes of a tensor in place, but PyTorch's fused optimizers bypass the count. Importing this file
makes them count, for all optimizers of the process.
"""

from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook


@dataclass(frozen=True, eq=False)
class WeightVersion:
    """What a weight was when a copy of it was made.

    Only ``weight.data += ...`` and the like are not seen; whoever writes so calls ``increment_version``.

    Attributes:
        source: The weight, which this does not keep alive.
        values: Its values then; they keep their place in memory, so that no new ones are taken for them.
        count: Changes in place until then.
    """

    source: ReferenceType[Tensor]
    values: Tensor
    count: int

    @classmethod
    def of(cls, weight: Tensor) -> "WeightVersion":
        """Look at a weight, which must not be an inference tensor: their changes are not counted."""
        return cls(ref(weight), weight.detach(), weight._version)

    def is_current(self, weight: Tensor) -> bool:
        """Whether this is the weight, with the same values."""
        return (
            self.source() is weight
            and weight._version == self.count
            and weight.data_ptr() == self.values.data_ptr()
            and weight.dtype == self.values.dtype
        )


def _count_fused_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        if group.get("fused"):
            increment_version([one for one in group["params"] if one.grad is not None])


register_optimizer_step_post_hook(_count_fused_step)
