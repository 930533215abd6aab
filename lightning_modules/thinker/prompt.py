"""Chat prompt: token ids around the place of the audio, replies to ids and back."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_modules.errors import UserError
from lightning_modules.thinker.pretrained import load_pretrained


class ChatPrompt:
    """A tokenizer's chat template with one audio placeholder as the user's turn.

    Attributes:
        prefix_ids: token ids before the audio.
        suffix_ids: token ids after the audio, up to where the assistant begins to write.
        end_of_turn_id: token id that ends the assistant's turn.

    Args:
        tokenizer: a directory written by `save_pretrained`, a published name, or the tokenizer itself.
        audio_token: the placeholder, one special token of the tokenizer.
        system_prompt: text of the system's turn; None leaves that turn to the template.

    Raises:
        FileNotFoundError: if nothing can be loaded from `tokenizer`.
        UserError: if the tokenizer has no such audio token, no chat template or no end-of-turn token.
    """

    def __init__(
        self,
        tokenizer: str | Path | PreTrainedTokenizerBase,
        audio_token: str = "<|audio|>",
        system_prompt: str | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = load_pretrained(AutoTokenizer.from_pretrained, tokenizer, "tokenizer")
        self.tokenizer = tokenizer
        name = f"the tokenizer {tokenizer.name_or_path!r}"
        audio_id = tokenizer.get_vocab().get(audio_token)
        if audio_id is None:
            raise UserError(
                f"{name} has no token {audio_token!r} to mark the place of the audio; add it with "
                "add_special_tokens, or set audio_token to a special token that its texts never use."
            )
        if not tokenizer.chat_template:
            raise UserError(f"{name} has no chat template; set its chat_template.")
        if tokenizer.eos_token_id is None:
            raise UserError(f"{name} has no eos_token to end a turn with; set it.")
        self.end_of_turn_id = int(tokenizer.eos_token_id)
        turns = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        turns.append({"role": "user", "content": audio_token})
        # enable_thinking is Qwen3's; templates ignore variables that they do not know.
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, enable_thinking=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids.count(audio_id) != 1:
            raise UserError(
                f"{name} turns its chat template {text!r} into {ids.count(audio_id)} tokens {audio_token!r}, "
                "1 is needed; make audio_token a special token and let the template print the user's content once."
            )
        place = ids.index(audio_id)
        self.prefix_ids: list[int] = ids[:place]
        self.suffix_ids: list[int] = ids[place + 1 :]

    def __len__(self) -> int:
        """Size of the vocabulary, added tokens included."""
        return len(self.tokenizer)

    def encode_replies(self, replies: Sequence[str]) -> list[list[int]]:
        """Turns reply texts into token ids, without an end-of-turn token.

        Raises:
            UserError: if a reply has no tokens, or has the text of a special token (or an unknown word) inside.
        """
        return self._encode(replies, "reply")

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

    @property
    def blank_id(self) -> int:
        """Token id that stands for "nothing new" in a transcription: the padding token, which no text holds.

        Raises:
            UserError: if the tokenizer has no padding token.
        """
        if self.tokenizer.pad_token_id is None:
            raise UserError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has no pad_token, which transcription needs as its "
                "blank; set it."
            )
        return int(self.tokenizer.pad_token_id)

    def encode_transcripts(self, transcripts: Sequence[str]) -> list[list[int]]:
        """Turns query transcripts into token ids, with the tokens that their words have inside a sentence.

        Raises:
            UserError: if a transcript is empty, or has the text of a special token (or an unknown word) inside.
        """
        return self._encode([transcript and " " + transcript for transcript in transcripts], "transcript")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Turns token ids into text, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
