"""Chat prompt: token ids around the audio of a dialogue, replies to ids and back."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_modules.dialogue import Turn
from lightning_modules.errors import UserError
from lightning_modules.pretrained.loading import load_pretrained
from lightning_modules.pretrained.meta_device import is_on_meta
from lightning_modules.thinker.dialogue.chat_template import ChatTemplate
from lightning_modules.thinker.dialogue.new_words import add_words
from lightning_modules.thinker.dialogue.settings import DialogueSettings


class ChatPrompt:
    """A tokenizer with its chat template: dialogues to token ids around their audio, replies to ids and back.

    The tokenizer is loaded in the constructor, so that a mistake is found early. Only under ``torch.device("meta")``,
    where settings are checked before an earlier stage has written the tokenizer, a missing directory is loaded on its
    first use.

    Args:
        tokenizer: A directory written by ``save_pretrained``, a published name, or the tokenizer itself.
        audio_token: The placeholder, one special token of the tokenizer that no text uses.
        system_prompt: Text of the system's turn; None leaves that turn to the template.
        settings: What tokenizer and template leave open; its defaults if None.
        new_words: Words that become tokens of the tokenizer; see :func:`add_words`.

    Raises:
        FileNotFoundError: If nothing can be loaded from ``tokenizer``.
        UserError: If the tokenizer has no such tokens, no chat template or no end of turn.
    """

    def __init__(
        self,
        tokenizer: str | Path | PreTrainedTokenizerBase,
        audio_token: str = "<|audio|>",
        system_prompt: str | None = None,
        settings: DialogueSettings | None = None,
        new_words: Sequence[str] = (),
    ) -> None:
        self._source = tokenizer
        self.new_words = tuple(new_words)
        self._audio_token = audio_token
        self._system_prompt = system_prompt
        self._settings = settings or DialogueSettings()
        is_given = isinstance(tokenizer, PreTrainedTokenizerBase) or Path(tokenizer).is_dir()
        self.is_loaded = is_given or not is_on_meta()
        if self.is_loaded:
            _ = self._single_turn
            if self._settings.blank_token is not None:
                _ = self.blank_id

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        found = self._source
        if not isinstance(found, PreTrainedTokenizerBase):
            found = load_pretrained(AutoTokenizer.from_pretrained, found, "tokenizer")
        return add_words(found, self.new_words)

    def with_new_words(self, words: Sequence[str]) -> "ChatPrompt":
        """Give the same prompt with further words as tokens; see :func:`add_words`."""
        words = (*self.new_words, *words)
        return ChatPrompt(self._source, self._audio_token, self._system_prompt, self._settings, words)

    @cached_property
    def _template(self) -> ChatTemplate:
        variables, date = self._settings.template_variables, self._settings.date
        return ChatTemplate(self.tokenizer, self._audio_token, self._system_prompt, variables, date)

    @cached_property
    def _single_turn(self) -> list[list[int]]:
        return self._template.render(())

    @property
    def settings(self) -> tuple[str, str, str | None]:
        """Chat template, audio token and system prompt: what decides, with the tokenizer, which ids a prompt has."""
        return str(self.tokenizer.chat_template), self._audio_token, self._system_prompt

    @property
    def prefix_ids(self) -> list[int]:
        """Token ids before the audio of a dialogue that begins with its query."""
        return self._single_turn[0]

    @property
    def suffix_ids(self) -> list[int]:
        """Token ids after the audio of the query, up to where the assistant begins to write."""
        return self._single_turn[1]

    def around_audio(self, turns: Sequence[Turn]) -> list[list[int]]:
        """Give the token ids before the first audio, between audios, and behind the query.

        Args:
            turns: Earlier turns, the oldest first; the spoken query follows them.

        Raises:
            UserError: If turns do not alternate, or a text holds a special token.
        """
        return self._template.render(turns) if turns else self._single_turn

    @property
    def end_of_turn_id(self) -> int:
        """Token id that ends the assistant's turn, as the chat template prints it."""
        return self._template.end_of_turn_id

    def stop_ids(self, of_model: Iterable[int]) -> frozenset[int]:
        """Give the token ids at which a reply is over.

        Args:
            of_model: Ids at which the generation settings of the language model stop.

        Returns:
            The end of turn, the tokenizer's eos_token, and those of the model that no text can hold.
        """
        own = {self.end_of_turn_id, self.tokenizer.eos_token_id} - {None}
        return frozenset(own | self._template.special_ids.intersection(of_model))

    @cached_property
    def blank_id(self) -> int:
        """Token id that stands for "nothing new" in a transcription: ``blank_token``, or else the padding token.

        Raises:
            UserError: If the tokenizer has no such token, or texts can hold it.
        """
        name = self._settings.blank_token or self.tokenizer.pad_token
        blank_id = None if name is None else self.tokenizer.get_vocab().get(name)
        if blank_id is None or blank_id not in self._template.special_ids:
            lack = "no pad_token" if name is None else f"no special token {name!r}"
            raise UserError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has {lack}, which transcription needs as its blank; "
                "set dialogue.blank_token to a special token that no text uses."
            )
        return int(blank_id)

    def __len__(self) -> int:
        """Give the size of the vocabulary, added tokens included."""
        return len(self.tokenizer)

    def refuse_small_vocabulary(self, vocab_size: int) -> None:
        """Refuse a language model with fewer embeddings than there are tokens, once the tokenizer is there.

        Raises:
            UserError: If it has.
        """
        if self.is_loaded and len(self) > vocab_size:
            raise UserError(
                f"the tokenizer has {len(self)} tokens, the language model has embeddings for {vocab_size}; raise "
                "vocab_size, add fewer words, or use the tokenizer that belongs to the model."
            )

    def encode_replies(self, replies: Sequence[str]) -> list[list[int]]:
        """Turn reply texts into token ids, without an end-of-turn token.

        Raises:
            UserError: If a reply has no tokens, or holds the text of a special token or an unknown word.
        """
        return self._encode(replies, "reply")

    def encode_transcripts(self, transcripts: Sequence[str]) -> list[list[int]]:
        """Turn query transcripts into token ids, with the tokens that their words have inside a sentence.

        Raises:
            UserError: If a transcript is empty, or holds the text of a special token or an unknown word.
        """
        return self._encode([transcript and " " + transcript for transcript in transcripts], "transcript")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Turn token ids into text, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _encode(self, texts: Sequence[str], what: str) -> list[list[int]]:
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        special = self._template.special_ids
        for text, ids in zip(texts, rows, strict=True):
            if not ids:
                raise UserError(f"{what} {text!r} is empty; every example needs a {what} text.")
            found = special.intersection(ids)
            if found:
                names = self.tokenizer.convert_ids_to_tokens(sorted(found))
                raise UserError(
                    f"{what} {text!r} has special or unknown tokens {names}; clean it, or train the tokenizer on it."
                )
        return rows
