"""Turns of a dialogue before its last query, as corpora, batches, thinkers and live dialogues pass them on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.errors import UserError

USER, ASSISTANT = "user", "assistant"


@dataclass(frozen=True)
class Turn:
    """What one side said before the last query.

    Attributes:
        role: "user" or "assistant", the words of chat templates.
        text: What was said; None if only the speech is known.
        is_spoken: Whether the language model hears the turn's speech rather than reads its text; only users are heard.

    Raises:
        UserError: If the role is another, an assistant's turn is spoken, or there is neither text nor speech.
    """

    role: str
    text: str | None = None
    is_spoken: bool = False

    def __post_init__(self) -> None:
        """Check that there is something to hear or to read."""
        if self.role not in (USER, ASSISTANT):
            raise UserError(f"a turn has the role {self.role!r}; give {USER!r} or {ASSISTANT!r}")
        if self.is_spoken and self.role == ASSISTANT:
            raise UserError("an assistant's turn is marked as spoken; give its text, which the thinker wrote")
        if not self.is_spoken and not (self.text or "").strip():
            raise UserError(f"a turn of the {self.role} has neither speech nor text; give it one, or drop the dialogue")


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse turns that a query cannot follow.

    Args:
        turns: Earlier turns, the oldest first.

    Raises:
        UserError: If they do not alternate, from a user's to an assistant's.
    """
    roles = [turn.role for turn in turns]
    if roles != [USER, ASSISTANT] * (len(roles) // 2):
        raise UserError(f"earlier turns must alternate, from {USER!r} to {ASSISTANT!r}; found {roles}")


def spoken_texts(turns: Sequence[Turn]) -> list[str]:
    """Return the texts of spoken turns.

    Raises:
        UserError: If one has no text.
    """
    for place, turn in enumerate(turns, start=1):
        if turn.text is None:
            raise UserError(f"earlier turn {place} is speech without a transcript, which is needed to read it; add one")
    return [turn.text for turn in turns if turn.is_spoken and turn.text is not None]


def as_written(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Give the text of spoken turns in place of their speech.

    Raises:
        UserError: If a spoken turn has no text.
    """
    spoken_texts(turns)
    return tuple(replace(turn, is_spoken=False) for turn in turns)


@dataclass(frozen=True)
class History:
    """What was said before the queries of a batch of B dialogues.

    Attributes:
        turns: Turns of each dialogue, the oldest first; none where a dialogue begins with its query.
        speech: ``(M, S) float32`` at 16 kHz, or ``int16`` on its way to the device: the spoken turns, dialogue by
            dialogue and in order, padded with zeros; None if all are written.
        speech_lengths: ``(M,) int64``, in samples; on the host.
    """

    turns: tuple[tuple[Turn, ...], ...]
    speech: Tensor | None = None
    speech_lengths: Tensor | None = None

    @classmethod
    def of(cls, turns: Sequence[Sequence[Turn]], speech: Sequence[Sequence[Tensor]]) -> Self:
        """Pad the spoken turns of dialogues.

        Args:
            turns: Earlier turns of each dialogue.
            speech: For each dialogue the samples of its spoken turns, ``(S,)``, in order.

        Raises:
            UserError: If turns do not alternate, or there are not as many rows of samples as spoken turns.
        """
        for own, heard in zip(turns, speech, strict=True):
            check_turns(own)
            num_spoken = sum(turn.is_spoken for turn in own)
            if num_spoken != len(heard):
                raise UserError(f"a dialogue has {num_spoken} spoken turns, but samples of {len(heard)}; make them fit")
        rows = [samples for heard in speech for samples in heard]
        padded = pad_sequence(rows, batch_first=True) if rows else None
        lengths = None if padded is None else padded.new_tensor([len(row) for row in rows]).long()
        return cls(tuple(tuple(own) for own in turns), padded, lengths)

    def __len__(self) -> int:
        """Return the number of dialogues."""
        return len(self.turns)

    def row(self, dialogue: int) -> Self:
        """Return the history of one dialogue, without the padding of the others."""
        counts = [sum(turn.is_spoken for turn in own) for own in self.turns]
        first, own = sum(counts[:dialogue]), counts[dialogue]
        if self.speech is None or self.speech_lengths is None or not own:
            return replace(self, turns=self.turns[dialogue : dialogue + 1], speech=None, speech_lengths=None)
        lengths = self.speech_lengths[first : first + own]
        speech = self.speech[first : first + own, : int(lengths.max())]
        return replace(self, turns=self.turns[dialogue : dialogue + 1], speech=speech, speech_lengths=lengths)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with a function applied to its tensors."""
        if self.speech is None or self.speech_lengths is None:
            return self
        return replace(self, speech=function(self.speech), speech_lengths=function(self.speech_lengths))
