"""Several corpora read as one."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import numpy as np

from datamodules.batch import SpokenExample
from datamodules.formats.released_layout import ReleasedLayout


class JoinedLayouts:
    """The dialogues of one split of several corpora, one corpus behind the other.

    Their ids begin with the name of the corpus and a slash, so that they are as unique as those of one corpus.

    Args:
        layouts: The same split of each corpus, by the corpus's name; at least one.
    """

    def __init__(self, layouts: Mapping[str, ReleasedLayout]) -> None:
        self._names, self._layouts = list(layouts), list(layouts.values())
        self._ends = list(accumulate(map(len, self._layouts)))

    def __len__(self) -> int:
        """Return the number of dialogues."""
        return self._ends[-1]

    def __getitem__(self, position: int) -> SpokenExample:
        """Read one dialogue; see :meth:`ReleasedLayout.__getitem__`."""
        which = bisect_right(self._ends, position)
        example = self._layouts[which][position - (self._ends[which - 1] if which else 0)]
        return replace(example, id=f"{self._names[which]}/{example.id}", corpus=self._names[which])

    def sizes(self) -> np.ndarray:
        """Return how long each dialogue is; see :meth:`ReleasedLayout.sizes`."""
        return np.concatenate([layout.sizes() for layout in self._layouts])

    def sets(self) -> np.ndarray:
        """Return the number of each dialogue's corpus, in the order of the corpora, ``(N,) int64``."""
        return np.repeat(np.arange(len(self._layouts)), [len(layout) for layout in self._layouts])
