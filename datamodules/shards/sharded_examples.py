"""Examples of converted corpora by their number, read where they lie."""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import fsspec
import numpy as np
import soundfile
import torch
from torch import Tensor

from datamodules.batch import SkippedExample, SpokenExample, from_pcm, to_pcm
from datamodules.formats.released_layout import check_fields
from datamodules.shards.byte_ranges import RangeCache, retry
from datamodules.shards.shard_files import (
    DamagedExampleError,
    ShardFiles,
    decode_history,
    decode_query_16k,
    decode_text,
    decode_units,
)
from datamodules.shards.shard_index import INDEX, SHARDS, ShardIndex
from datamodules.shards.text_state_files import TextStateFiles
from datamodules.shards.text_state_index import TEXT_STATES
from lightning_modules.dialogue import as_written
from lightning_modules.number_checks import require_at_least

FIELDS = ("query", "units", "transcript", TEXT_STATES)
MAX_DAMAGED_IN_A_ROW = 1000


def open_corpus(url: str, num_attempts: int = 6, cache: RangeCache | None = None) -> ShardFiles:
    """Open a converted corpus.

    Args:
        url: Directory that the conversion wrote, local or remote.
        num_attempts: Attempts per read.
        cache: Keeps what was read.

    Raises:
        FileNotFoundError: If there is no index.
        OSError: If the storage cannot be reached.
        UserError: If the index is damaged.
    """
    address = f"{url.rstrip('/')}/{INDEX}"
    try:
        system, path = fsspec.core.url_to_fs(address)
        content = retry(lambda: system.cat_file(path), num_attempts, address)
    except FileNotFoundError:
        raise FileNotFoundError(f"{address}: no index of shards; convert the corpus, or fix the url") from None
    return ShardFiles(f"{url.rstrip('/')}/{SHARDS}", ShardIndex.read(io.BytesIO(content), address), num_attempts, cache)


class ConvertedCorpus:
    """One converted corpus in its order, for jobs; its index is read on first use.

    Args:
        url: Directory that the conversion wrote, local or remote.
        fields: Which of "query", "units", "transcript" to read.
        num_attempts: Attempts per read.

    Raises:
        UserError: If a field is unknown, or a number out of range.
    """

    def __init__(self, url: str, fields: Sequence[str] = ("query",), num_attempts: int = 6) -> None:
        require_at_least(1, num_attempts=num_attempts)
        self.url, self.fields, self.num_attempts = url, check_fields(fields, FIELDS[:3]), num_attempts

    @functools.cached_property
    def _examples(self) -> "ShardedExamples":
        return ShardedExamples([open_corpus(self.url, self.num_attempts)], self.fields)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._examples)

    @property
    def ids(self) -> np.ndarray:
        """Names of the examples, ``(N,) str``."""
        return self._examples.corpora[0].index.ids

    def sizes(self) -> np.ndarray:
        """Return how long each query is, for sorting, ``(N,) float32``, in seconds."""
        return self._examples.corpora[0].index.query_s

    def read(self, positions: Sequence[int]) -> list[SpokenExample]:
        """Read examples; remote ones at the same time.

        Raises:
            DamagedExampleError: If one is not what was written.
            OSError: If the storage cannot be reached.
        """
        return self._examples.__getitems__([(0, position) for position in positions])


class ShardedExamples:
    """Examples of several corpora, numbered consecutively; queries are int16, half of the bytes to move to the device.

    Args:
        corpora: Where they lie.
        fields: Which of "query", "units", "transcript" to read; ids and reply texts are always there, and text states
            if `text_states` are given.
        augment: Changes a query, ``(S,) float32``, and the spoken turns before it in the same way, as a function of its
            epoch and number.
        written_history: Gives spoken turns before the query as text; without one an example counts as damaged.
        text_states: What a thinker said to the replies of each corpus; examples hold none if None.
    """

    def __init__(
        self,
        corpora: Sequence[ShardFiles],
        fields: Sequence[str],
        augment: Callable[[Tensor, int, int], Tensor] | None = None,
        written_history: bool = False,
        text_states: Sequence[TextStateFiles] | None = None,
    ) -> None:
        self.corpora, self.fields, self.augment = list(corpora), tuple(fields), augment
        self.written_history = written_history
        self.text_states = text_states
        self._starts = np.cumsum([0, *(len(corpus.index) for corpus in corpora)])
        self._parts = [part for part in ("query", "units") if part in fields] + ["text"]

    def __len__(self) -> int:
        """Return the number of examples of all corpora."""
        return int(self._starts[-1])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[SpokenExample]:
        """Read a batch, the examples of (epoch, number) pairs.

        Raises:
            DamagedExampleError: If one is not what was written.
            OSError: If the storage cannot be reached.
        """
        examples = []
        for found in self.read(keys):
            if isinstance(found, DamagedExampleError):
                raise found
            examples.append(found)
        return examples

    def read(self, keys: Sequence[tuple[int, int]]) -> list[SpokenExample | DamagedExampleError]:
        """Read a batch; in place of a damaged example, return what is wrong with it.

        Raises:
            OSError: If the storage cannot be reached.
        """
        numbers = np.array([number for _, number in keys], dtype=np.int64)
        corpus_of = np.searchsorted(self._starts, numbers, side="right") - 1
        examples: dict[int, SpokenExample | DamagedExampleError] = {}
        for which in np.unique(corpus_of).tolist():
            places = np.flatnonzero(corpus_of == which).tolist()
            corpus, rows = self.corpora[which], (numbers[places] - self._starts[which]).tolist()
            for place, row, parts in zip(places, rows, corpus.read_many(rows, self._parts), strict=True):
                examples[place] = self._decode_or_tell(corpus, row, parts)
            if self.text_states is not None:
                self._add_states(self.text_states[which], dict(zip(places, rows, strict=True)), examples)
        return [self._augmented(examples[place], key) for place, key in enumerate(keys)]

    def _augmented(
        self, found: SpokenExample | DamagedExampleError, key: tuple[int, int]
    ) -> SpokenExample | DamagedExampleError:
        if self.augment is None or isinstance(found, DamagedExampleError) or found.query is None:
            return found
        query, *earlier = (to_pcm(self.augment(from_pcm(one), *key)) for one in (found.query, *found.history_speech))
        return replace(found, query=query, history_speech=tuple(earlier))

    @staticmethod
    def _add_states(
        states: TextStateFiles, rows: dict[int, int], examples: dict[int, SpokenExample | DamagedExampleError]
    ) -> None:
        """Add text states to the examples at the places that are keys, from the rows that are values."""
        whole = {place: found for place in rows if isinstance(found := examples[place], SpokenExample)}
        replies = [example.reply_text for example in whole.values()]
        read = states.read_many([rows[place] for place in whole], replies)
        for (place, example), found in zip(whole.items(), read, strict=True):
            is_damaged = isinstance(found, DamagedExampleError)
            examples[place] = found if is_damaged else found.added_to(example)

    def _decode_or_tell(
        self, corpus: ShardFiles, row: int, parts: dict[str, memoryview] | DamagedExampleError
    ) -> SpokenExample | DamagedExampleError:
        try:
            if isinstance(parts, dict):
                return self._decode(parts)
            problem = str(parts)
        except (soundfile.LibsndfileError, ValueError, KeyError) as error:
            problem = f"{corpus.index.ids[row]}: {error}"
        return DamagedExampleError(f"{problem}, in {corpus.url}")

    def _decode(self, parts: dict[str, memoryview]) -> SpokenExample:
        text: dict[str, Any] = decode_text(parts["text"])
        query = units = None
        history, audio = decode_history(text, parts["whole"]) if "query" in parts else ((), [])
        if self.written_history:
            history, audio = as_written(history), []
        if "query" in parts:
            query = decode_query_16k(parts["query"])
        if "units" in parts:
            units = torch.from_numpy(decode_units(parts["units"]))
        transcript = text["transcript"] if "transcript" in self.fields else None
        return SpokenExample(
            text["id"],
            text["reply"],
            query=query,
            units=units,
            transcript=transcript,
            history=history,
            history_speech=tuple(map(decode_query_16k, audio)),
        )


class ForgivingExamples:
    """Examples of which a damaged one is left out of its batch, and named there.

    A batch of nothing but damaged examples gets the next whole one, so that all devices take as many steps.

    Args:
        examples: Where to read.

    Raises:
        DamagedExampleError: If the next thousand are damaged, too.
    """

    def __init__(self, examples: ShardedExamples) -> None:
        self._examples = examples

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[SpokenExample | SkippedExample]:
        """Read a batch; see :class:`ForgivingExamples`."""
        found = self._read(keys)
        epoch, number = keys[-1]
        for step in range(1, MAX_DAMAGED_IN_A_ROW):
            if any(isinstance(example, SpokenExample) for example in found):
                return found
            found += self._read([(epoch, (number + step) % len(self._examples))])
        raise DamagedExampleError(f"{len(found)} examples in a row are damaged; check the corpus")

    def _read(self, keys: Sequence[tuple[int, int]]) -> list[SpokenExample | SkippedExample]:
        read = self._examples.read(keys)
        return [one if isinstance(one, SpokenExample) else SkippedExample(str(one)) for one in read]
