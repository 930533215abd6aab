"""Examples whose text is longer than the anchors of their speech, counted over all devices."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.training.reduction import gather_over_ranks

# counts on a device that are looked at together, since the host waits for them
MAX_UNSEEN = 32


class TextOverflow:
    """Names each such example once: its talkers do not see the end of its text.

    Counts on a device are looked at some steps later, many at a time.

    Attributes:
        ids: Examples found so far, on this device or, since :meth:`share`, on any.
    """

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self._unseen: list[tuple[Sequence[str], Tensor]] = []

    def report(self, ids: Sequence[str], overflow: Tensor, rank: int) -> None:
        """Take in the counts of a batch, and warn of the examples that were not named before.

        Args:
            ids: Names of the examples, B.
            overflow: Text tokens that no anchor carries, ``(B,) int64``.
            rank: This device, for the warning.
        """
        self._unseen.append((ids, overflow))
        if overflow.device.type == "cpu" or len(self._unseen) >= MAX_UNSEEN:
            self._look(rank)

    def _look(self, rank: int | None = None) -> None:
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        names = [name for ids, _ in unseen for name in ids]
        counts = torch.cat([overflow for _, overflow in unseen]).tolist()
        new = {name for name, count in zip(names, counts, strict=True) if count} - self.ids
        if new:
            self.ids |= new
            where = "" if rank is None else f" on rank {rank}"
            warnings.warn(
                f"The replies {sorted(new)} have more text than the anchors of their speech can carry; their talkers "
                f"do not see the end of it ({len(self.ids)} such examples so far{where}).",
                stacklevel=3,
            )

    def share(self, num_ranks: int) -> None:
        """Let every device know of the examples that any has found; called on all of them."""
        self._look()
        self.ids = set().union(*gather_over_ranks(self.ids, num_ranks))
