"""What a speech LLM needs of a batch, told before the first batch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from lightning_modules.errors import UserError


class SpeechTokens(Protocol):
    """A batch that may hold speech tokens, ``units (B, T)`` with their lengths ``(B,)``."""

    units: Tensor | None
    unit_lengths: Tensor | None


class Refuses(Protocol):
    """A talker that refuses speech tokens that it has no codes for."""

    def refuse_foreign_codes(self, units: Tensor | None, unit_lengths: Tensor | None) -> None:
        """Raise UserError if there is one, while they are on the host."""


def refuse_foreign_codes(batch: SpeechTokens, talkers: Iterable[tuple[str, Refuses]]) -> None:
    """Let each talker refuse the speech tokens of a batch that it has no codes for.

    Raises:
        UserError: If there is one.
    """
    for _, talker in talkers:
        talker.refuse_foreign_codes(batch.units, batch.unit_lengths)


def refuse_missing_fields(
    fields: Mapping[str, Sequence[str]], trains_thinker: bool, needs_transcripts: bool, has_talkers: bool
) -> None:
    """Refuse data that lacks a field.

    Args:
        fields: Names of the fields that a batch holds, by split.
        trains_thinker: Whether the thinker learns from spoken queries.
        needs_transcripts: Whether it learns from their transcripts, too.
        has_talkers: Whether talkers learn from, or are compared with, the speech tokens of replies.

    Raises:
        UserError: If a split lacks one, or training batches hold text states of a thinker that changes meanwhile.
    """
    if trains_thinker and has_talkers and "text_states" in fields.get("train", ()):
        raise UserError(
            "talkers train beside a thinker that changes, but train batches hold text states that it wrote before; "
            "take 'text_states' out of the data module's fields"
        )
    for split, names in fields.items():
        hears = trains_thinker or split == "test"
        for field, is_needed, why in (
            ("query", hears, "the thinker listens to spoken queries"),
            ("transcript", needs_transcripts and split == "train", "the thinker's objective weighs transcripts"),
            ("units", has_talkers, "talkers speak in speech tokens"),
        ):
            if is_needed and field not in names:
                raise UserError(f"{why}, which {split} batches lack; add {field!r} to the data module's fields")
        if has_talkers and "query" not in names and "text_states" not in names:
            raise UserError(
                f"talkers read what the thinker writes, but {split} batches hold neither queries nor text states; add "
                "'text_states' (or 'query', for a thinker pass per batch) to the data module's fields"
            )


def refuse_missing_replies(fields: Mapping[str, Sequence[str]], who: str) -> None:
    """Refuse data without reply audio.

    Args:
        fields: Names of the fields that a batch holds, by split.
        who: Who learns from it, as in "the codec learns".

    Raises:
        UserError: If a split lacks it.
    """
    for split, names in fields.items():
        if "reply" not in names:
            raise UserError(
                f"{who} from reply audio, which {split} batches lack; add 'reply' to the data module's fields"
            )
