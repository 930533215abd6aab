"""Reads the on-disk layout of the released VocalNet sets: a JSON list beside folders of audio and of speech tokens."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from datamodules.batch import SpokenExample, text_states_folder
from datamodules.formats.unit_files import read_units
from lightning_modules.errors import UserError

SAMPLE_RATE = 16_000
FIELDS = ("query", "units", "reply", "transcript", "text_states")

# The key of an item that each field is read from.
_KEYS = {"query": "speech", "units": "units", "reply": "reply_speech", "transcript": "transcript", "text_states": "id"}

# Fields that other jobs write, and the argument of the data module that says where.
_ROOTS = {
    "units": "units_root to the run that wrote the speech tokens",
    "text_states": "text_states_root to the run that wrote the text states",
}


@dataclass(frozen=True)
class IndexItem:
    """One entry of the JSON list; a path that the entry does not name is None.

    Args:
        id: its name, unique in the list.
        reply_text: the reply.
        query: the audio file of the query.
        units: the `.npy` file of the reply's speech tokens.
        reply: the audio file of the reply.
        transcript: the query as text.
        text_states: the `.npy` file of the thinker's states.
    """

    id: str
    reply_text: str
    query: Path | None = None
    units: Path | None = None
    reply: Path | None = None
    transcript: str | None = None
    text_states: Path | None = None


class ReleasedLayout:
    """One split of a corpus on disk.

    Args:
        index: the JSON file.
        root: the folder that `speech` and `reply_speech` paths start from.
        units_root: the folder that `units` paths start from; `root` if None.
        fields: which of "query", "units", "reply", "transcript", "text_states" to read; others stay None and need not
            be there.
        num_codes: the size of the codebook that speech tokens must lie in; not checked if None.
        max_examples: keeps only the first ones; all if None.
        text_states_root: the folder that holds `<set>/text_states/<id>.npy`; `root` if None.

    Raises:
        FileNotFoundError: if the index or a file that it names is missing.
        UserError: if the index does not have the released layout, or lacks a field that is asked for.
    """

    def __init__(
        self,
        index: Path | str,
        root: Path | str,
        units_root: Path | str | None = None,
        fields: Sequence[str] = ("query", "units"),
        num_codes: int | None = None,
        max_examples: int | None = None,
        text_states_root: Path | str | None = None,
    ) -> None:
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown:
            raise UserError(f"fields: unknown {unknown}; choose among {list(FIELDS)}")
        self.index = Path(index)
        self.fields = tuple(fields)
        self.num_codes = num_codes
        states = text_states_folder(Path(text_states_root or root), self.index.parent.name)
        self.items = _read_index(self.index, Path(root), Path(units_root or root), states)[:max_examples]
        for field in self.fields:
            self._require(field)

    def __len__(self) -> int:
        """The number of dialogues."""
        return len(self.items)

    def __getitem__(self, position: int) -> SpokenExample:
        """Reads one dialogue.

        Raises:
            UserError: if one of its files is damaged, empty, or holds tokens outside of the codebook.
        """
        item = self.items[position]
        try:
            return SpokenExample(
                id=item.id,
                reply_text=item.reply_text,
                query=self._audio("query", item.query),
                units=self._units(item.units),
                reply=self._audio("reply", item.reply),
                transcript=item.transcript if "transcript" in self.fields else None,
                text_states=self._text_states(item.text_states),
            )
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{self.index}, item {item.id!r}: {error}") from error

    def sizes(self) -> np.ndarray:
        """How long each dialogue is, for sorting: (N,) int64.

        The bytes of the speech tokens' file, or of the first audio that is read, or the characters of the reply: found
        without opening a file.
        """
        for field in ("units", "reply", "query"):
            if field in self.fields:
                return np.array([getattr(item, field).stat().st_size for item in self.items], dtype=np.int64)
        return np.array([len(item.reply_text) for item in self.items], dtype=np.int64)

    def _require(self, field: str) -> None:
        absent = [item.id for item in self.items if getattr(item, field) is None]
        if absent:
            raise UserError(
                f"{self.index}, item {absent[0]!r}: has no {_KEYS[field]!r} key, nor have {len(absent) - 1} other "
                f"items; add it or leave {field!r} out of fields"
            )
        if field == "transcript":
            return
        missing = [item for item in self.items if not getattr(item, field).is_file()]
        if missing:
            mend = _ROOTS.get(field, "root to the corpus")
            raise FileNotFoundError(
                f"{self.index}, item {missing[0].id!r}: {getattr(missing[0], field)} is missing, and so are the files "
                f"of {len(missing) - 1} other items; set {mend}, make them anew, or leave {field!r} out of fields"
            )

    def _audio(self, field: str, path: Path | None) -> torch.Tensor | None:
        if field not in self.fields:
            return None
        assert path is not None, "checked when the index was read"
        return torch.from_numpy(read_audio(path))

    def _units(self, path: Path | None) -> torch.Tensor | None:
        if "units" not in self.fields:
            return None
        assert path is not None, "checked when the index was read"
        return torch.from_numpy(read_units(path, self.num_codes))

    def _text_states(self, path: Path | None) -> torch.Tensor | None:
        if "text_states" not in self.fields:
            return None
        assert path is not None, "checked when the index was read"
        return torch.from_numpy(read_text_states(path))


def read_text_states(path: Path) -> np.ndarray:
    """Reads what a thinker says to each text token of a reply.

    Args:
        path: a `.npy` file of (N, hidden_size + embedding_size) numbers.

    Returns:
        (N, hidden_size + embedding_size) float32.

    Raises:
        UserError: if the file is damaged or empty, or holds anything else.
    """
    try:
        states = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable .npy file of text states ({error}); write it anew") from error
    if states.ndim != 2 or len(states) == 0 or not np.issubdtype(states.dtype, np.floating):
        raise UserError(
            f"{path}: text states have shape {states.shape} and type {states.dtype}; expected floating-point numbers, "
            "a row for each text token; write them anew"
        )
    return states.astype(np.float32, copy=False)


def read_audio(path: Path) -> np.ndarray:
    """Reads audio of any rate and number of channels as 16 kHz mono.

    Args:
        path: a file that libsndfile reads (wav, flac, ogg, mp3).

    Returns:
        (S,) float32.

    Raises:
        UserError: if the file is damaged or empty.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: not readable as audio ({error}); make it anew") from error
    if len(samples) == 0:
        raise UserError(f"{path}: holds no samples; make it anew")
    mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
    return mono if rate_hz == SAMPLE_RATE else soxr.resample(mono, rate_hz, SAMPLE_RATE)


def _read_index(path: Path, root: Path, units_root: Path, states: Path) -> list[IndexItem]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such index of spoken examples; make the corpus or mend the path")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); make it anew") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: expected a JSON list with at least one item")
    items = [_parse(path, position, entry, root, units_root, states) for position, entry in enumerate(entries)]
    name, count = Counter(item.id for item in items).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}, item {name!r}: the id stands there {count} times; make ids unique")
    return items


def _parse(path: Path, position: int, entry: object, root: Path, units_root: Path, states: Path) -> IndexItem:
    if not isinstance(entry, dict) or "id" not in entry:
        raise UserError(f"{path}, entry {position}: expected an object with an 'id' key")
    where = f"{path}, item {entry['id']!r}"
    for key in ("speech", "units", "reply_speech", "transcript"):
        if key in entry and not (isinstance(entry[key], str) and entry[key]):
            raise UserError(f"{where}: {key!r} must be a string that is not empty")
    return IndexItem(
        id=str(entry["id"]),
        reply_text=_reply(where, entry.get("conversations")),
        query=root / entry["speech"] if "speech" in entry else None,
        units=units_root / entry["units"] if "units" in entry else None,
        reply=root / entry["reply_speech"] if "reply_speech" in entry else None,
        transcript=entry.get("transcript"),
        text_states=states / f"{entry['id']}.npy",
    )


def _reply(where: str, turns: object) -> str:
    is_single = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    speakers = [turn.get("from") for turn in turns] if is_single else None
    if speakers != ["human", "gpt"]:
        raise UserError(
            f"{where}: 'conversations' must hold one turn from 'human', then one from 'gpt'; found {speakers}"
        )
    reply = turns[1].get("value")
    if not isinstance(reply, str) or not reply.strip():
        raise UserError(f"{where}: the reply (the 'value' of 'gpt') is empty; drop the item or give it a reply")
    return reply
