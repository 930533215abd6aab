"""Chat prompt: token ids around the place of the audio, replies to ids and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_modules.errors import UserError
from lightning_modules.thinker.pretrained import is_on_meta, load_pretrained


@dataclass(frozen=True)
class _Template:
    """Token ids of the chat template around the audio."""

    prefix_ids: list[int]
    suffix_ids: list[int]
    end_of_turn_id: int


class ChatPrompt:
    """A tokenizer's chat template with one audio placeholder as the user's turn.

    The tokenizer is loaded in the constructor, so that a mistake is found early. Only under ``torch.device("meta")``,
    where settings are checked before an earlier stage has written the tokenizer, a missing directory is loaded on its
    first use.

    Args:
        tokenizer: A directory written by ``save_pretrained``, a published name, or the tokenizer itself.
        audio_token: The placeholder, one special token of the tokenizer.
        system_prompt: Text of the system's turn; None leaves that turn to the template.

    Raises:
        FileNotFoundError: If nothing can be loaded from ``tokenizer``.
        UserError: If the tokenizer has no such audio token, no chat template or no end-of-turn token.
    """

    def __init__(
        self,
        tokenizer: str | Path | PreTrainedTokenizerBase,
        audio_token: str = "<|audio|>",
        system_prompt: str | None = None,
    ) -> None:
        self._source = tokenizer
        self._audio_token = audio_token
        self._system_prompt = system_prompt
        is_given = isinstance(tokenizer, PreTrainedTokenizerBase) or Path(tokenizer).is_dir()
        self.is_loaded = is_given or not is_on_meta()
        if self.is_loaded:
            _ = self._template

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        if isinstance(self._source, PreTrainedTokenizerBase):
            return self._source
        return load_pretrained(AutoTokenizer.from_pretrained, self._source, "tokenizer")

    @cached_property
    def _template(self) -> _Template:
        tokenizer = self.tokenizer
        name = f"the tokenizer {tokenizer.name_or_path!r}"
        audio_id = tokenizer.get_vocab().get(self._audio_token)
        if audio_id is None:
            raise UserError(
                f"{name} has no token {self._audio_token!r} to mark the place of the audio; add it with "
                "add_special_tokens, or set audio_token to a special token that its texts never use."
            )
        if not tokenizer.chat_template:
            raise UserError(f"{name} has no chat template; set its chat_template.")
        if tokenizer.eos_token_id is None:
            raise UserError(f"{name} has no eos_token to end a turn with; set it.")
        turns = [] if self._system_prompt is None else [{"role": "system", "content": self._system_prompt}]
        turns.append({"role": "user", "content": self._audio_token})
        # enable_thinking is Qwen3's; templates ignore variables that they do not know.
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, enable_thinking=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids.count(audio_id) != 1:
            raise UserError(
                f"{name} turns its chat template {text!r} into {ids.count(audio_id)} tokens {self._audio_token!r}, "
                "1 is needed; make audio_token a special token and let the template print the user's content once."
            )
        place = ids.index(audio_id)
        return _Template(ids[:place], ids[place + 1 :], int(tokenizer.eos_token_id))

    @property
    def prefix_ids(self) -> list[int]:
        """Token ids before the audio."""
        return self._template.prefix_ids

    @property
    def suffix_ids(self) -> list[int]:
        """Token ids after the audio, up to where the assistant begins to write."""
        return self._template.suffix_ids

    @property
    def end_of_turn_id(self) -> int:
        """Token id that ends the assistant's turn."""
        return self._template.end_of_turn_id

    @property
    def blank_id(self) -> int:
        """Token id that stands for "nothing new" in a transcription: the padding token, which no text holds.

        Raises:
            UserError: If the tokenizer has no padding token.
        """
        if self.tokenizer.pad_token_id is None:
            raise UserError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has no pad_token, which transcription needs as its "
                "blank; set it."
            )
        return int(self.tokenizer.pad_token_id)

    def __len__(self) -> int:
        """Give the size of the vocabulary, added tokens included."""
        return len(self.tokenizer)

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
        special = set(self.tokenizer.all_special_ids)
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
