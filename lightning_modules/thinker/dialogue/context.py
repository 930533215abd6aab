"""What of a dialogue fits into the context of the language model."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_modules.dialogue import Turn
from lightning_modules.errors import UserError
from lightning_modules.thinker.dialogue.prompt import ChatPrompt
from lightning_modules.thinker.dialogue.settings import DialogueSettings


@dataclass(frozen=True)
class FittedPrompt:
    """The prompt of one dialogue.

    Attributes:
        text_ids: Token ids before, between and behind the audios; see :meth:`ChatPrompt.around_audio`.
        num_dropped_turns: Oldest turns that were left out.
        num_dropped_speech: Spoken ones among them.
    """

    text_ids: list[list[int]]
    num_dropped_turns: int = 0
    num_dropped_speech: int = 0


class ContextWindow:
    """Refuses what is too long for the language model, or leaves out the oldest turns if it is told to.

    Args:
        prompt: Turns to token ids.
        num_positions: Positions of the language model; None for no limit.
        settings: May lower the limit, and tells what to do with a dialogue that is too long.
    """

    def __init__(self, prompt: ChatPrompt, num_positions: int | None, settings: DialogueSettings) -> None:
        limits = [limit for limit in (num_positions, settings.max_context_tokens) if limit is not None]
        self.max_tokens = min(limits, default=None)
        self.prompt, self.drop_oldest_turns = prompt, settings.drop_oldest_turns

    def fit(
        self, turns: Sequence[Turn], speech_tokens: Sequence[int], reply_tokens: int, name: str = "the dialogue"
    ) -> FittedPrompt:
        """Lay out the prompt of one dialogue.

        Args:
            turns: Earlier turns, the oldest first.
            speech_tokens: Embeddings of each spoken turn, and of the query.
            reply_tokens: Tokens of the reply, or room for them.
            name: What errors call the dialogue.

        Raises:
            UserError: If it is too long.
        """
        num_dropped = num_dropped_speech = 0
        while True:
            text_ids = self.prompt.around_audio(turns[num_dropped:])
            length = sum(map(len, text_ids)) + sum(speech_tokens[num_dropped_speech:]) + reply_tokens
            if self.max_tokens is None or length <= self.max_tokens:
                return FittedPrompt(text_ids, num_dropped, num_dropped_speech)
            if not self.drop_oldest_turns or num_dropped == len(turns):
                raise UserError(self._problem(name, length, reply_tokens, len(turns) - num_dropped))
            # A question leaves together with its answer, so that the template still sees them alternate.
            num_dropped_speech += sum(turn.is_spoken for turn in turns[num_dropped : num_dropped + 2])
            num_dropped += 2

    def _problem(self, name: str, length: int, reply_tokens: int, num_turns: int) -> str:
        fix = "set dialogue.drop_oldest_turns: true, or shorten it" if num_turns else "shorten its query or its reply"
        return (
            f"{name} takes {length} tokens with {num_turns} earlier turns and {reply_tokens} tokens for the reply, but "
            f"there is room for {self.max_tokens} (the language model's positions, or dialogue.max_context_tokens); "
            f"{fix}"
        )
