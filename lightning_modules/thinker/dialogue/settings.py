"""How a thinker turns dialogues into prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_modules.number_checks import require_at_least
from lightning_modules.thinker.dialogue.chat_template import PROMPT_DATE


@dataclass(frozen=True)
class DialogueSettings:
    """What a tokenizer and its chat template leave open.

    Attributes:
        blank_token: Special token that stands for "nothing new" in a transcription; None for the padding token.
        template_variables: Values of names that the chat template asks for, beside ``enable_thinking: false``.
        date: What chat templates that print today's date are told, as "YYYY-MM-DD".
        max_context_tokens: Positions for prompt and reply; None for those of the language model.
        drop_oldest_turns: Leave out the oldest turns of a dialogue that is too long, and count them; otherwise it is an
            error.

    Raises:
        UserError: If the limit is below 1.
    """

    blank_token: str | None = None
    template_variables: Mapping[str, str | bool | int] = field(default_factory=dict)
    date: str = PROMPT_DATE
    max_context_tokens: int | None = None
    drop_oldest_turns: bool = False

    def __post_init__(self) -> None:
        """Check the limit."""
        require_at_least(1, max_context_tokens=self.max_context_tokens)
