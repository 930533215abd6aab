"""One dialogue from wherever it lies to what a shard holds, or what is wrong with it."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, Self

import numpy as np
import soundfile
from pyarrow import ArrowException
from tokenizers import AddedToken

from datamodules.formats.corpus_files import CorpusFiles
from datamodules.formats.item_errors import ItemError
from datamodules.formats.parquet_tables import RowPlace, TableRows
from datamodules.formats.released_items import SPECIAL_TOKENS, ItemTexts, parse_item, parse_texts
from datamodules.formats.unit_files import parse_units
from datamodules.shards.shard_index import PackedExample
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive

FORMATS = {"WAV": "wav", "FLAC": "flac"}
# tokens per second that the limits of speech tokens stand for
LIMITS_HZ = 25.0


@dataclass(frozen=True)
class Fault:
    """Why an example is left out.

    Attributes:
        id: Its name, or its place in the list if it has none.
        kind: One of a few words to count by.
        problem: What is wrong, with the file.
    """

    id: str
    kind: str
    problem: str


@dataclass(frozen=True)
class PackingRules:
    """What an example has to be, and how it is stored.

    Whatever breaks a rule is a fault. The limits of speech tokens find files that do not belong to their reply: at 25
    tokens per second 3,000 tokens are 120 seconds, and replies of spoken assistants end long before. Read aloud, a
    character of English takes about 2 tokens, one of Chinese about 6, a digit up to 10; 20 is twice the most of these.
    A reply of a word or two may be mostly silence, so the limit per character counts from 250 tokens (10 seconds) on.
    These limits stand for 25 tokens per second; a corpus whose codec left a record has them at the codec's rate.

    Attributes:
        num_codes: Size of the codebook; None takes that of the codec's record, and checks nothing where there is none.
        to_flac: Store queries as 16-bit FLAC, about half of the bytes; otherwise as their files are.
        max_query_s: Longest query, and longest spoken turn before it, in seconds.
        max_units: Most speech tokens of a reply.
        max_units_per_character: Most speech tokens per character of the reply's text.
        min_units_limit: Speech tokens that any reply may have, however short its text.
        special_tokens: Regular expression of what no text may hold; texts are not searched if None. It stands for the
            control tokens of chat templates, which end a training when they occur inside a text.
        block_tokens: Speech tokens per block of a talker.
        anchors_per_block: Text tokens that a block reads. Replies with more text than their speech has anchors for are
            faults if a tokenizer counts their text tokens.

    Raises:
        UserError: If a number is out of range, or the regular expression is not valid.
    """

    num_codes: int | None = None
    to_flac: bool = False
    max_query_s: float = 30.0
    max_units: int = 3000
    max_units_per_character: float = 20.0
    min_units_limit: int = 250
    special_tokens: str | None = SPECIAL_TOKENS
    block_tokens: int = 16
    anchors_per_block: int = 4

    def __post_init__(self) -> None:
        """Check the numbers and the regular expression."""
        require_positive(max_query_s=self.max_query_s, max_units_per_character=self.max_units_per_character)
        require_at_least(1, num_codes=self.num_codes, max_units=self.max_units, min_units_limit=self.min_units_limit)
        require_at_least(1, block_tokens=self.block_tokens, anchors_per_block=self.anchors_per_block)
        try:
            self.special_pattern()
        except re.error as error:
            raise UserError(
                f"special_tokens={self.special_tokens!r}: not a regular expression ({error}); fix it, or write null"
            ) from error

    def at_rate(self, frame_rate_hz: float) -> Self:
        """Give the rules for tokens of another rate: the same seconds of speech."""
        factor = frame_rate_hz / LIMITS_HZ
        return replace(
            self,
            max_units=max(1, round(self.max_units * factor)),
            max_units_per_character=self.max_units_per_character * factor,
            min_units_limit=max(1, round(self.min_units_limit * factor)),
        )

    def special_pattern(self) -> re.Pattern[str] | None:
        """Return the compiled expression of what no text may hold."""
        return None if self.special_tokens is None else re.compile(self.special_tokens)


class Tokenizer(Protocol):
    """What is asked of a text tokenizer of the library `transformers`."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens that have names, that of unknown words among them."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """All tokens that were added by their ids; published tokenizers name few of those that are special."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        """Return a mapping with `input_ids`."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the names of tokens."""


class Packer:
    """Reads and checks dialogues.

    Args:
        files: Where queries and speech tokens lie.
        rules: What an example has to be.
        tokenizer: Counts the text tokens of replies and knows its special tokens; neither is looked at if None.
    """

    def __init__(self, files: CorpusFiles, rules: PackingRules, tokenizer: Tokenizer | None = None) -> None:
        self.files, self.rules, self.tokenizer = files, rules, tokenizer
        self._special = rules.special_pattern()
        self._special_ids = frozenset() if tokenizer is None else _special_ids(tokenizer)
        self._tables = TableRows()

    def __call__(self, name: str, entry: dict[str, Any] | RowPlace) -> PackedExample | Fault:
        """Pack one dialogue.

        Args:
            name: What to call it.
            entry: An item of the released layout, or the place of a row of a table.

        Returns:
            The example, or why there is none.
        """
        try:
            return self._pack_row(name, entry) if isinstance(entry, RowPlace) else self._pack_item(name, entry)
        except ItemError as error:
            return Fault(name, error.kind, str(error))

    def _pack_item(self, name: str, entry: dict[str, Any]) -> PackedExample:
        item = parse_item(entry, self._special)
        if item.speech is None or item.units is None:
            key = "speech" if item.speech is None else "units"
            raise ItemError("layout", f"the item has no {key!r} key; add it")
        query = self._content(item.speech, "missing_query")
        tokens = self._content(item.units, "missing_units")
        names = name, PurePosixPath(item.speech).parts[0]
        earlier = [(self._content(path, "missing_query"), path) for path in item.history_speech]
        texts = ItemTexts(item.reply, item.transcript, item.history)
        return self._pack(names, (query, item.speech), (tokens, item.units), texts, earlier)

    def _pack_row(self, name: str, place: RowPlace) -> PackedExample:
        where = f"{place.table}, row {name!r}"
        try:
            row = self._tables.read(place)
        except (OSError, ArrowException) as error:
            raise ItemError("broken_table", f"{where} cannot be read ({error})") from error
        units, texts = row.get("units"), parse_texts(row, self._special)
        query = _audio_bytes(row.get("audio"), where)
        earlier = [
            (_audio_bytes(audio, f"{where}, history_audio {place}"), f"{where}, history_audio {place}")
            for place, audio in enumerate(row.get("history_audio") or (), start=1)
        ]
        num_spoken = sum(turn.is_spoken for turn in texts.history)
        if num_spoken != len(earlier):
            problem = f"'history_audio' holds {len(earlier)} audios for {num_spoken} spoken turns before the query"
            raise ItemError("layout", f"{where}: {problem}")
        if units is None:
            raise ItemError("missing_units", f"{where} has no units")
        content = io.BytesIO()
        try:
            np.save(content, np.asarray(units), allow_pickle=False)
        except ValueError as error:
            raise ItemError("broken_units", f"{where}: units are not a list of integers ({error})") from error
        names = name, Path(place.table).parent.name
        return self._pack(names, (query, where), (content.getvalue(), where), texts, earlier)

    def _pack(
        self,
        names: tuple[str, str],
        query: tuple[bytes, str],
        units: tuple[bytes, str],
        texts: ItemTexts,
        earlier: Sequence[tuple[bytes, str]],
    ) -> PackedExample:
        content, extension, seconds = self._check_query(*query)
        history_audio = tuple(self._check_query(*audio)[:2] for audio in earlier)
        tokens = self._check_units(*units)
        self._check_length(len(tokens), texts.reply)
        num_text_tokens = self._count_text_tokens(len(tokens), texts)
        said = texts.reply, texts.transcript, num_text_tokens, texts.history, history_audio
        return PackedExample(*names, content, extension, seconds, tokens, *said)

    def _content(self, path: str, kind: str) -> bytes:
        try:
            return self.files.read(path)
        except (FileNotFoundError, IsADirectoryError):
            raise ItemError(kind, f"{path} is missing") from None
        except OSError as error:
            raise ItemError(kind.replace("missing", "broken"), f"{path} cannot be read ({error})") from error

    def _check_query(self, content: bytes, where: str) -> tuple[bytes, str, float]:
        try:
            with soundfile.SoundFile(io.BytesIO(content)) as file:
                promised, rate, kind = file.frames, file.samplerate, file.format
                samples = file.read(dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, MemoryError) as error:  # a damaged header may promise hours
            raise ItemError("broken_query", f"{where} is not readable as audio ({error})") from error
        seconds = len(samples) / rate
        if len(samples) < promised or len(content) < _riff_size(content):
            raise ItemError("broken_query", f"{where} is cut off after {seconds:.2f} s")
        if len(samples) == 0:
            raise ItemError("silent_query", f"{where} holds no sample")
        if not np.isfinite(samples).all():
            raise ItemError("broken_query", f"{where} holds numbers that are not finite")
        if not samples.any():
            raise ItemError("silent_query", f"{where} holds nothing but silence")
        if seconds > self.rules.max_query_s:
            raise ItemError("long_query", f"{where} lasts {seconds:.1f} s, longer than {self.rules.max_query_s:g} s")
        if not self.rules.to_flac and kind in FORMATS:
            return content, FORMATS[kind], seconds
        packed = io.BytesIO()
        soundfile.write(packed, samples, rate, format="FLAC", subtype="PCM_16")
        return packed.getvalue(), "flac", seconds

    def _check_units(self, content: bytes, where: str) -> np.ndarray:
        try:
            units = parse_units(content, where)
        except ValueError as error:
            raise ItemError("broken_units", str(error)) from error
        num_codes = self.rules.num_codes or 2**31  # shards hold int32
        if units.max() >= num_codes:
            problem = f"{where} holds token {units.max()}, but there are {num_codes} codes"
            raise ItemError("units_outside_codebook", problem)
        return units.astype(np.int32)

    def _check_length(self, num_units: int, reply: str) -> None:
        rules = self.rules
        if num_units > rules.max_units:
            raise ItemError("long_reply", f"the reply has {num_units} speech tokens, more than {rules.max_units}")
        limit = max(rules.min_units_limit, rules.max_units_per_character * len(reply))
        if num_units > limit:
            raise ItemError(
                "units_do_not_fit_text",
                f"the reply has {num_units} speech tokens for {len(reply)} characters, more than {limit:.0f}",
            )

    def _count_text_tokens(self, num_units: int, texts: ItemTexts) -> int:
        """Count the text tokens of a reply, -1 without a tokenizer, and check what the tokenizer says of the texts."""
        if self.tokenizer is None:
            return -1
        ids = self._token_ids("the reply", texts.reply)
        if texts.transcript is not None:
            self._token_ids("the transcript", texts.transcript)
        for place, turn in enumerate(texts.history, start=1):
            if turn.text is not None:
                self._token_ids(f"turn {place}", turn.text)
        num_blocks = -(-(num_units + 1) // self.rules.block_tokens)  # EOS takes a place
        room = num_blocks * self.rules.anchors_per_block
        if len(ids) > room:
            problem = f"the reply has {len(ids)} text tokens, its {num_units} speech tokens have anchors for {room}"
            raise ItemError("text_overflow", problem)
        return len(ids)

    def _token_ids(self, which: str, text: str) -> Sequence[int]:
        assert self.tokenizer is not None
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        special = self._special_ids.intersection(ids)
        if special:
            names = self.tokenizer.convert_ids_to_tokens(sorted(special))
            raise ItemError("special_token", f"{which} has special or unknown tokens {names} of the tokenizer")
        return ids


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids that must not come from a text."""
    added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _audio_bytes(audio: Any, where: str) -> bytes:
    content = audio.get("bytes") if isinstance(audio, dict) else audio
    if not isinstance(content, bytes) or not content:
        raise ItemError("missing_query", f"{where} has no audio bytes")
    return content


def _riff_size(content: bytes) -> int:
    """Return the bytes that a wav file says it has; 0 if it is not one, or was written to a pipe and does not know.

    libsndfile takes what is there for the whole.
    """
    size = int.from_bytes(content[4:8], "little")
    return size + 8 if content[:4] == b"RIFF" and size < 0xFFFFFFFF else 0
