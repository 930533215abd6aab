"""A tokenizer's own chat template, rendered for dialogues with audio; nothing here knows a family of models."""

import datetime
from collections.abc import Callable, Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lightning_modules.dialogue import ASSISTANT, USER, Turn, check_turns
from lightning_modules.errors import UserError

# Templates that can let a model think before it answers ask for this name; others ignore it.
TEMPLATE_VARIABLES = {"enable_thinking": False}
PROMPT_DATE = "2024-07-26"

_REPLY = "reply"


class ChatTemplate:
    """Renders turns with the template that the tokenizer brings.

    The date that some templates print is a setting, since a prompt must not change from one day to the next.

    Args:
        tokenizer: A tokenizer with a chat template.
        audio_token: A special token that stands for the audio of a spoken turn.
        system_prompt: Text of the system's turn; None leaves that turn to the template.
        variables: Values of names that the template asks for, beside ``TEMPLATE_VARIABLES``.
        date: What templates that print today's date are told, as "YYYY-MM-DD".

    Raises:
        UserError: If the tokenizer has no such audio token, no chat template or no end of turn, or the date is not one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        audio_token: str,
        system_prompt: str | None = None,
        variables: Mapping[str, str | bool | int] | None = None,
        date: str = PROMPT_DATE,
    ) -> None:
        self.tokenizer, self.audio_token, self.system_prompt = tokenizer, audio_token, system_prompt
        self.name = f"the tokenizer {tokenizer.name_or_path!r}"
        self._variables = {**TEMPLATE_VARIABLES, **(variables or {}), "strftime_now": _clock_of(date)}
        self.special_ids = special_ids_of(tokenizer)
        self.audio_id = self._find_audio_token()
        if not tokenizer.chat_template:
            raise UserError(f"{self.name} has no chat template; set its chat_template.")
        self.end_of_turn_id = self._find_end_of_turn()
        self.render(())

    def render(self, turns: Sequence[Turn]) -> list[list[int]]:
        """Give the token ids around each audio.

        Args:
            turns: Earlier turns, the oldest first; the spoken query follows them.

        Returns:
            One list more than there are spoken turns and query: the ids before the first audio, between audios, and
            after the query, up to where the assistant begins to write.

        Raises:
            UserError: If turns do not alternate, or a text holds a special token.
        """
        check_turns(turns)
        for turn in turns:
            if not turn.is_spoken:
                self._refuse_special(turn)
        text = self._print([*turns, Turn(USER, is_spoken=True)], add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        places = [place for place, token_id in enumerate(ids) if token_id == self.audio_id]
        num_spoken = 1 + sum(turn.is_spoken for turn in turns)
        if len(places) != num_spoken:
            raise UserError(
                f"{self.name} turns its chat template {text!r} into {len(places)} tokens {self.audio_token!r}, "
                f"{num_spoken} {'is' if num_spoken == 1 else 'are'} needed; make audio_token a special token and let "
                "the template print the user's content once."
            )
        begins, ends = [0, *(place + 1 for place in places)], [*places, len(ids)]
        return [ids[begin:end] for begin, end in zip(begins, ends, strict=True)]

    def _print(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        contents = [self.audio_token if turn.is_spoken else turn.text for turn in turns]
        messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, contents, strict=True)]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [*system, *messages],
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                    **self._variables,
                )
            )
        except TemplateError as error:
            roles = ["system"] * len(system) + [turn.role for turn in turns]
            raise UserError(
                f"{self.name}: its chat template cannot print turns of {roles} ({error}); without a turn of the system "
                "set system_prompt: null, otherwise set another chat_template."
            ) from error

    def _find_audio_token(self) -> int:
        audio_id = self.tokenizer.get_vocab().get(self.audio_token)
        if audio_id is None:
            raise UserError(
                f"{self.name} has no token {self.audio_token!r} to mark the place of the audio; add it with "
                f"add_special_tokens, or set audio_token to a special token that its texts never use; {self._spare()}."
            )
        if audio_id not in self.special_ids:
            raise UserError(
                f"{self.name}: {self.audio_token!r} is no special token, so that a text could hold it; set audio_token "
                f"to a special token; {self._spare()}."
            )
        return int(audio_id)

    def _spare(self, num_shown: int = 12) -> str:
        names = [str(token) for _, token in sorted(self.tokenizer.added_tokens_decoder.items()) if token.special]
        if not names:
            return "it has no special tokens"
        return f"it has {', '.join(names[:num_shown])}{', ...' if len(names) > num_shown else ''}"

    def _find_end_of_turn(self) -> int:
        """Find what the template prints behind an assistant's turn: its first special token, or else eos_token.

        That is not always eos_token: a model may end a text with one token and a turn with another.
        """
        text = self._print([Turn(USER, is_spoken=True), Turn(ASSISTANT, _REPLY)], add_generation_prompt=False)
        tail = text[text.rfind(_REPLY) + len(_REPLY) :] if _REPLY in text else ""
        ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
        found = [token_id for token_id in ids if token_id in self.special_ids]
        if found:
            return int(found[0])
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                f"{self.name} ends a turn with no special token: its chat template prints {tail!r} behind a reply, and "
                "it has no eos_token; set one of them."
            )
        return int(self.tokenizer.eos_token_id)

    def _refuse_special(self, turn: Turn) -> None:
        ids = self.tokenizer(turn.text, add_special_tokens=False)["input_ids"]
        found = self.special_ids.intersection(ids)
        if found:
            names = self.tokenizer.convert_ids_to_tokens(sorted(found))
            raise UserError(
                f"an earlier turn of the {turn.role}, {turn.text!r}, has special or unknown tokens {names}; clean it."
            )


def special_ids_of(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Give the ids that no text may hold: the named special tokens, and all others that were added as special.

    Published tokenizers name few of their hundreds of special tokens.
    """
    added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _clock_of(date: str) -> Callable[[str], str]:
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError as error:
        raise UserError(f"dialogue.date is {date!r}, not a date ({error}); write it as YYYY-MM-DD") from error
    return day.strftime
