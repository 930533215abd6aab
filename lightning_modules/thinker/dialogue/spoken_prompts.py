"""Prompts of a batch of dialogues as input embeddings, with each audio in the place of its placeholder."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.dialogue import History, spoken_texts
from lightning_modules.errors import UserError
from lightning_modules.talker.network.transfers import send_to
from lightning_modules.thinker.dialogue.context import ContextWindow


@dataclass(frozen=True)
class SpokenTurns:
    """Earlier turns, with what stands in the place of the spoken ones.

    Attributes:
        history: The turns of B dialogues, M of them spoken.
        embeddings: ``(M, A, embedding_size)``, the spoken turns dialogue by dialogue; None if there are none.
        lengths: ``(M,) int64``, embeddings of each; on the host, or it waits for them.
    """

    history: History
    embeddings: Tensor | None = None
    lengths: Tensor | None = None

    def rows(self) -> list[list[Tensor]]:
        """Give, for each dialogue, the embeddings of its spoken turns without padding."""
        found: list[Tensor] = []
        if self.embeddings is not None and self.lengths is not None:
            found = [row[:length] for row, length in zip(self.embeddings, self.lengths.tolist(), strict=True)]
        counts = [sum(turn.is_spoken for turn in own) for own in self.history.turns]
        if sum(counts) != len(found):
            raise UserError(f"the earlier turns hold {sum(counts)} spoken ones, but speech of {len(found)}")
        starts = [sum(counts[:place]) for place in range(len(counts))]
        return [found[start : start + count] for start, count in zip(starts, counts, strict=True)]


def hear(history: History | None, embed_audio: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> SpokenTurns | None:
    """Put the embeddings of their audio in the place of spoken turns.

    Args:
        history: What was said before the queries; None if every dialogue begins with its query.
        embed_audio: Samples ``(M, S)`` and their lengths to embeddings and their lengths.
    """
    if history is None or history.speech is None or history.speech_lengths is None:
        return None if history is None else SpokenTurns(history)
    return SpokenTurns(history, *embed_audio(history.speech, history.speech_lengths))


def read_out(history: History | None, embed_texts: Callable[[list[str]], tuple[Tensor, Tensor]]) -> SpokenTurns | None:
    """Put the embeddings of their text in the place of spoken turns.

    Args:
        history: What was said before the queries; None if every dialogue begins with its query.
        embed_texts: M texts to embeddings and their lengths.

    Raises:
        UserError: If a spoken turn has no text.
    """
    if history is None:
        return None
    texts = [text for own in history.turns for text in spoken_texts(own)]
    return SpokenTurns(history, *embed_texts(texts)) if texts else SpokenTurns(history)


@dataclass(frozen=True)
class Prompts:
    """Prompts of B dialogues.

    Attributes:
        rows: ``(P, embedding_size)`` each.
        num_dropped_turns: Oldest turns of all dialogues that the context had no room for.
    """

    rows: list[Tensor]
    num_dropped_turns: int = 0


def lay_out(
    context: ContextWindow,
    embed: Callable[[Tensor], Tensor],
    audio: Tensor,
    audio_lengths: Tensor,
    reply_tokens: Sequence[int],
    earlier: SpokenTurns | None = None,
) -> Prompts:
    """Put audio embeddings in the place of their placeholders.

    Args:
        context: Fits turns into the context.
        embed: Token ids to input embeddings.
        audio: ``(B, A, embedding_size)``, what stands in the place of the queries.
        audio_lengths: ``(B,) int64``, embeddings of each; on the host, or it waits for them.
        reply_tokens: Tokens of the replies that follow, or room for them.
        earlier: What was said before the queries.

    Raises:
        UserError: If a dialogue is too long, or the earlier turns are of another number of dialogues.
    """
    num_rows = len(audio)
    if earlier is not None and len(earlier.history) != num_rows:
        raise UserError(f"there are {num_rows} queries, but earlier turns of {len(earlier.history)} dialogues")
    turns_of = earlier.history.turns if earlier is not None else ((),) * num_rows
    spoken_of = earlier.rows() if earlier is not None else [[]] * num_rows

    # What the template prints is mostly the same in all rows: it is looked up once.
    @functools.cache
    def embed_text(ids: tuple[int, ...]) -> Tensor:
        return embed(send_to(audio.device, torch.tensor(ids, dtype=torch.long)))

    rows, num_dropped = [], 0
    for place, (query, length) in enumerate(zip(audio, audio_lengths.tolist(), strict=True)):
        spoken = [*spoken_of[place], query[:length]]
        fitted = context.fit(
            turns_of[place], [len(one) for one in spoken], reply_tokens[place], f"dialogue {place} of the batch"
        )
        num_dropped += fitted.num_dropped_turns
        texts = [embed_text(tuple(ids)) for ids in fitted.text_ids]
        heard = [one.to(texts[0].dtype) for one in spoken[fitted.num_dropped_speech :]]
        pieces = [piece for pair in zip(texts[:-1], heard, strict=True) for piece in pair]
        rows.append(torch.cat([*pieces, texts[-1]]))
    return Prompts(rows, num_dropped)
