"""One dialogue from wherever it lies to what a shard holds, or what is wrong with it."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
from pyarrow import ArrowException

from datamodules.formats.corpus_sources import CorpusFiles, TableRows
from datamodules.formats.unit_files import parse_units
from datamodules.shards.shard_index import PackedExample

FORMATS = {"WAV": "wav", "FLAC": "flac"}


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

    Attributes:
        num_codes: Size of the codebook; tokens are not checked against it if None.
        to_flac: Store queries as 16-bit FLAC, about half of the bytes; else as their files are.
        max_query_s: Longest query.
        block_tokens: Speech tokens that a talker's block holds, and
        anchors_per_block: text tokens that it reads; replies with more text than their speech has anchors for are
            faults if their text tokens are counted.
    """

    num_codes: int | None = None
    to_flac: bool = False
    max_query_s: float = 30.0
    block_tokens: int = 16
    anchors_per_block: int = 4


class _FaultError(Exception):
    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


class Packer:
    """Reads and checks dialogues.

    Args:
        files: Where queries and speech tokens lie.
        rules: What an example has to be.
        count_text_tokens: Counts the text tokens of a reply; they are not counted if left out.
    """

    def __init__(
        self, files: CorpusFiles, rules: PackingRules, count_text_tokens: Callable[[str], int] | None = None
    ) -> None:
        self.files, self.rules, self.count_text_tokens = files, rules, count_text_tokens
        self._tables = TableRows()

    def __call__(self, name: str, entry: Any) -> PackedExample | Fault:
        """Packs one dialogue.

        Args:
            name: What to call it.
            entry: An item of the released layout, or the place of a row of a table.

        Returns:
            The example, or why there is none.
        """
        try:
            if isinstance(entry, dict) and "table" in entry:
                return self._pack_row(name, entry)
            return self._pack_item(name, entry)
        except _FaultError as fault:
            return Fault(name, fault.kind, str(fault))

    def _pack_item(self, name: str, entry: Any) -> PackedExample:
        reply = reply_of(entry)
        speech, units = (self._path(entry, key) for key in ("speech", "units"))
        query = self._content(speech, "missing_query")
        tokens = self._content(units, "missing_units")
        set_name = PurePosixPath(speech).parts[0]
        return self._pack((name, set_name), (query, speech), (tokens, units), reply, entry.get("transcript"))

    def _pack_row(self, name: str, entry: dict[str, Any]) -> PackedExample:
        table = entry["table"]
        try:
            row = self._tables.read(entry)
        except (OSError, ArrowException) as error:
            raise _FaultError("broken_table", f"{table}, row {name!r} cannot be read ({error})") from error
        reply = reply_of(row) if "conversations" in row else _reply_text(row.get("reply"), "reply")
        where = f"{table}, row {name!r}"
        audio, units = row.get("audio"), row.get("units")
        query = audio.get("bytes") if isinstance(audio, dict) else audio
        if not isinstance(query, bytes) or not query:
            raise _FaultError("missing_query", f"{where} has no audio bytes")
        if units is None:
            raise _FaultError("missing_units", f"{where} has no units")
        content = io.BytesIO()
        try:
            np.save(content, np.asarray(units), allow_pickle=False)
        except ValueError as error:
            raise _FaultError("broken_units", f"{where}: units are no list of integers ({error})") from error
        names = name, Path(table).parent.name
        return self._pack(names, (query, where), (content.getvalue(), where), reply, row.get("transcript"))

    def _pack(
        self,
        names: tuple[str, str],
        query: tuple[bytes, str],
        units: tuple[bytes, str],
        reply: str,
        transcript: str | None,
    ) -> PackedExample:
        if transcript is not None and not isinstance(transcript, str):
            raise _FaultError("layout", f"'transcript' must be a text; found {transcript!r}")
        content, extension, seconds = self._check_query(*query)
        tokens = self._check_units(*units)
        num_text_tokens = -1 if self.count_text_tokens is None else self.count_text_tokens(reply)
        num_blocks = -(-(len(tokens) + 1) // self.rules.block_tokens)  # EOS takes a place
        room = num_blocks * self.rules.anchors_per_block
        if num_text_tokens > room:
            problem = (
                f"the reply has {num_text_tokens} text tokens, its {len(tokens)} speech tokens have anchors for {room}"
            )
            raise _FaultError("text_overflow", problem)
        return PackedExample(*names, content, extension, seconds, tokens, reply, transcript, num_text_tokens)

    def _path(self, entry: dict[str, Any], key: str) -> str:
        value = entry.get(key)
        if not isinstance(value, str) or not value:
            raise _FaultError("layout", f"{key!r} must be a path; found {value!r}")
        return value

    def _content(self, path: str, kind: str) -> bytes:
        try:
            return self.files.read(path)
        except (FileNotFoundError, IsADirectoryError):
            raise _FaultError(kind, f"{path} is missing") from None
        except OSError as error:
            raise _FaultError(kind.replace("missing", "broken"), f"{path} cannot be read ({error})") from error

    def _check_query(self, content: bytes, where: str) -> tuple[bytes, str, float]:
        try:
            with soundfile.SoundFile(io.BytesIO(content)) as file:
                promised, rate, kind = file.frames, file.samplerate, file.format
                samples = file.read(dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, MemoryError) as error:  # a damaged header may promise hours
            raise _FaultError("broken_query", f"{where} is no readable audio ({error})") from error
        seconds = len(samples) / rate
        if len(samples) < promised or len(content) < _riff_size(content):
            raise _FaultError("broken_query", f"{where} is cut off after {seconds:.2f} s")
        if len(samples) == 0:
            raise _FaultError("silent_query", f"{where} holds no sample")
        if not np.isfinite(samples).all():
            raise _FaultError("broken_query", f"{where} holds numbers that are not finite")
        if not samples.any():
            raise _FaultError("silent_query", f"{where} holds nothing but silence")
        if seconds > self.rules.max_query_s:
            raise _FaultError("long_query", f"{where} lasts {seconds:.1f} s, longer than {self.rules.max_query_s:g} s")
        if not self.rules.to_flac and kind in FORMATS:
            return content, FORMATS[kind], seconds
        packed = io.BytesIO()
        soundfile.write(packed, samples, rate, format="FLAC", subtype="PCM_16")
        return packed.getvalue(), "flac", seconds

    def _check_units(self, content: bytes, where: str) -> np.ndarray:
        try:
            units = parse_units(content, where)
        except ValueError as error:
            raise _FaultError("broken_units", str(error)) from error
        if self.rules.num_codes is not None and units.max() >= self.rules.num_codes:
            problem = f"{where} holds token {units.max()}, but there are {self.rules.num_codes} codes"
            raise _FaultError("units_outside_codebook", problem)
        return units.astype(np.int32)


def _riff_size(content: bytes) -> int:
    """Bytes that a wav file says it has; 0 if it is none, or was written to a pipe and does not know.

    libsndfile takes what is there for the whole.
    """
    size = int.from_bytes(content[4:8], "little")
    return size + 8 if content[:4] == b"RIFF" and size < 0xFFFFFFFF else 0


def reply_of(entry: Any) -> str:
    """Gives the reply's text; raises a fault of the kind "layout" or "empty_reply"."""
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    is_list = isinstance(turns, list)
    speakers = [turn.get("from") if isinstance(turn, dict) else None for turn in turns] if is_list else None
    if speakers != ["human", "gpt"]:
        raise _FaultError("layout", f"'conversations' must be one turn of 'human' and one of 'gpt'; found {speakers}")
    return _reply_text(turns[1].get("value"), "the 'value' of 'gpt'")  # type: ignore[index]


def _reply_text(reply: Any, what: str) -> str:
    if not isinstance(reply, str) or not reply.strip():
        raise _FaultError("empty_reply", f"{what} is empty")
    return reply
