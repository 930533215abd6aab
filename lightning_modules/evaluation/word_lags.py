"""How many blocks lie between the anchor that tells a talker a word and the speech in which it says it."""

import re
from collections.abc import Sequence

from lightning_modules.evaluation.text_normalization import normalize_text

Span = tuple[int, int]


def word_lags(
    text: str,
    token_spans: Sequence[Span],
    word_starts: Sequence[tuple[int, float]],
    anchors_per_block: int,
    block_s: float,
) -> list[int | None]:
    """Give the lag of each word of a reply, for :func:`errors_by_label`.

    Args:
        text: The reply.
        token_spans: First character and the one behind the last of each text token.
        word_starts: First character of each word and the second at which it is spoken, in order.
        anchors_per_block: Text tokens that a block carries.
        block_s: Seconds of speech of a block.

    Returns:
        For each word after :func:`normalize_text` the block in which it begins to be spoken, less the one that carries
        its last token: 0 for a word that is spoken in the block that tells it; None where one of the two is not known.
    """
    lags: list[int | None] = []
    for found in re.finditer(r"\S+", text):
        words = normalize_text(found[0]).split()
        tokens = [
            index for index, (start, end) in enumerate(token_spans) if start < found.end() and end > found.start()
        ]
        starts = [second for place, second in word_starts if found.start() <= place < found.end()]
        lag = None
        if tokens and starts:
            lag = int(max(0.0, starts[0]) // block_s) - tokens[-1] // anchors_per_block
        # What stands together is told together, and spoken so as far as this knows.
        lags += [lag] * len(words)
    return lags
