"""A live dialogue: what was said is kept, and heard or read again with each new query."""

from collections.abc import Iterator

from torch import Tensor

from lightning_modules.dialogue import ASSISTANT, USER, History, Turn
from lightning_modules.inference.responder import Responder
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.talker.decoding.decoding import Decoding


class Conversation:
    """Answers one spoken query after the other.

    Args:
        responder: Answers them.

    Attributes:
        turns: What was said so far, the oldest first.
        num_dropped_turns: Oldest turns that the context had no room for at the latest query.
    """

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self.turns: list[Turn] = []
        self.num_dropped_turns = 0
        self._speech: list[Tensor] = []

    @property
    def history(self) -> History | None:
        """What was said so far, as a thinker takes it; None before the first answer."""
        return History.of([self.turns], [self._speech]) if self.turns else None

    def answer(self, query: Tensor, decoding: Decoding, reply: SpokenReply | None = None) -> Iterator[Tensor]:
        """Speak the answer to a query chunk by chunk, and keep both.

        Whoever stops listening closes the iterator: the text that was read for what was spoken until then is kept as
        the answer. A query that got no text for an answer is forgotten.

        Args:
            query: ``(S,) float32`` at 16 kHz.
            decoding: Which talker speaks, and how.
            reply: Filled in place as the reply grows: text, tokens, samples, times.

        Yields:
            Samples of each chunk, ``(n,) float32``.

        Raises:
            UserError: If the decoding cannot be used, or the query or the dialogue is too long.
        """
        decoding = self.responder.resolve(decoding)
        text = self.responder.write_text(query, decoding.adapter, self.history)
        self.num_dropped_turns = text.num_dropped_turns
        reply = reply if reply is not None else SpokenReply()
        try:
            yield from self.responder.stream(text, decoding, reply)
        finally:
            written = reply.text  # a thinker may be ahead of what was spoken
            if written.strip():
                self.turns += [Turn(USER, is_spoken=True), Turn(ASSISTANT, written)]
                self._speech.append(query)

    def forget(self) -> None:
        """Begin a new dialogue."""
        self.turns, self._speech, self.num_dropped_turns = [], [], 0
