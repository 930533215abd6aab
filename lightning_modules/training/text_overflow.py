"""Examples whose text is longer than the anchors of their speech, counted over all devices."""

import warnings
from collections.abc import Sequence

from torch import Tensor

from lightning_modules.training.reduction import gather_over_ranks


class TextOverflow:
    """Names each such example once: its talkers do not see the end of its text.

    Attributes:
        ids: Examples found so far, on this device or, since :meth:`share`, on any.
    """

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def report(self, ids: Sequence[str], overflow: Tensor, rank: int) -> None:
        """Warn of the examples of a batch that were not named before.

        Args:
            ids: Names of the examples, B.
            overflow: Text tokens that no anchor carries, ``(B,) int64``.
            rank: This device, for the warning.
        """
        new = {ids[row] for row in overflow.nonzero()[:, 0].tolist()} - self.ids
        if new:
            self.ids |= new
            warnings.warn(
                f"The replies {sorted(new)} have more text than the anchors of their speech can carry; their talkers "
                f"do not see the end of it ({len(self.ids)} such examples so far on rank {rank}).",
                stacklevel=2,
            )

    def share(self, num_ranks: int) -> None:
        """Let every device know of the examples that any has found; called on all of them."""
        self.ids = set().union(*gather_over_ranks(self.ids, num_ranks))
