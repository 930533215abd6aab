"""What one spoken dialogue and one batch of them hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.dialogue import History, Turn

# of all audio in examples and batches
SAMPLE_RATE_HZ = 16_000

PCM_SCALE = 2**15
SMALL_BYTES = 2**16
ON_HOST = ("query_lengths", "unit_lengths", "text_lengths")


def to_pcm(samples: Tensor) -> Tensor:
    """Round float32 samples in [-1, 1] to int16, which takes half of the bytes."""
    return (samples * PCM_SCALE).round_().clamp_(-PCM_SCALE, PCM_SCALE - 1).to(torch.int16)


def from_pcm(samples: Tensor) -> Tensor:
    """Return int16 samples as float32 in [-1, 1]; float32 samples as they are."""
    return samples.to(torch.float32).mul_(1 / PCM_SCALE) if samples.dtype == torch.int16 else samples


def bits_of(values: Tensor) -> np.ndarray:
    """Return bfloat16 values, which numpy does not know, as ``uint16``; others are rounded to bfloat16 first."""
    return values.to(torch.bfloat16).view(torch.uint16).numpy()


def from_bits(bits: np.ndarray) -> Tensor:
    """Return the bfloat16 values that :func:`bits_of` gave as ``uint16``."""
    return torch.from_numpy(bits).view(torch.bfloat16)


@dataclass
class SpokenExample:
    """One spoken dialogue; a field that was not asked for is None.

    Attributes:
        id: Its name in the corpus.
        reply_text: The reply as text.
        query: The spoken query at 16 kHz, ``(S,) float32`` or ``int16``.
        units: The speech tokens of the reply, ``(T,) int64``.
        reply: The spoken reply at 16 kHz, ``(S',) float32``.
        transcript: The query as text.
        corpus: The name of its corpus, where several are read.
        history: What was said before the query, the oldest turn first; none without the field "query".
        history_speech: Samples of its spoken turns, like ``query``.
        text_ids: Text tokens of the reply, ``(N,) int64``.
        text_hidden: The thinker's hidden state that predicted each of them, ``(N, hidden_size) bfloat16``.
    """

    id: str
    reply_text: str
    query: Tensor | None = None
    units: Tensor | None = None
    reply: Tensor | None = None
    transcript: str | None = None
    text_ids: Tensor | None = None
    text_hidden: Tensor | None = None
    corpus: str | None = None
    history: tuple[Turn, ...] = ()
    history_speech: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class SkippedExample:
    """Takes the place of an example that cannot be used.

    Attributes:
        problem: What is wrong with it, with its name.
    """

    problem: str


@dataclass
class SpokenBatch:
    """A batch of spoken dialogues, padded with zeros; a field that was not asked for is None, and so are its lengths.

    Pass `batch_size=len(batch)` to `self.log`: Lightning cannot tell it from the shapes.

    Lengths of queries and in tokens stay on the host: prompts and losses have to know there what they read.

    Attributes:
        ids: B names.
        reply_texts: B replies.
        transcripts: B queries as text.
        query: ``(B, S) float32`` at 16 kHz, or ``int16`` until :meth:`to_float` is called on the device.
        query_lengths: ``(B,) int64``, in samples; on the host.
        units: ``(B, T) int64``, speech tokens.
        unit_lengths: ``(B,) int64``, in tokens.
        reply: ``(B, S') float32`` at 16 kHz.
        reply_lengths: ``(B,) int64``, in samples.
        text_ids: ``(B, N) int64``, text tokens of the replies.
        text_hidden: ``(B, N, hidden_size) bfloat16``, the thinker's hidden states that predicted them.
        text_lengths: ``(B,) int64``, in text tokens.
        corpora: B names of corpora, where several are read.
        history: What was said before the queries; None if every dialogue begins with its query.
        skipped: What is wrong with examples that were left out.
    """

    ids: list[str]
    reply_texts: list[str]
    transcripts: list[str] | None = None
    query: Tensor | None = None
    query_lengths: Tensor | None = None
    units: Tensor | None = None
    unit_lengths: Tensor | None = None
    reply: Tensor | None = None
    reply_lengths: Tensor | None = None
    text_ids: Tensor | None = None
    text_hidden: Tensor | None = None
    text_lengths: Tensor | None = None
    corpora: list[str] | None = None
    history: History | None = None
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of dialogues."""
        return len(self.ids)

    def to(self, device: torch.device | str) -> Self:
        """Return a copy whose tensors are on a device, but for the lengths above; a GPU is not waited for."""
        does_not_wait = torch.device(device).type != "cpu"
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=does_not_wait))
        if moved.history is not None and self.history is not None:
            moved.history = replace(moved.history, speech_lengths=self.history.speech_lengths)
        return replace(moved, **{name: getattr(self, name) for name in ON_HOST})

    def pin_memory(self) -> Self:
        """Return a copy whose tensors are in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to_float(self) -> Self:
        """Return a copy whose queries and earlier turns are float32."""
        history = self.history
        if history is not None and history.speech is not None:
            history = replace(history, speech=from_pcm(history.speech))
        return self if self.query is None else replace(self, query=from_pcm(self.query), history=history)

    def queries(self) -> list[tuple[Tensor, History | None]]:
        """Return each query ``(S,)`` and what was said before it, without the padding of the others."""
        assert self.query is not None and self.query_lengths is not None, "the data module reads queries"
        histories = [None if self.history is None else self.history.row(row) for row in range(len(self))]
        rows = zip(self.query, self.query_lengths.tolist(), histories, strict=True)
        return [(query[:length], history) for query, length, history in rows]

    def __getstate__(self) -> dict[str, Any]:
        """Put small tensors into the message to another process: shared memory for each would take longer."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        small = {
            name: _to_array(value) for name, value in tensors.items() if value.is_cpu and value.nbytes <= SMALL_BYTES
        }
        return {**vars(self), **small}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Turn them into tensors again."""
        arrays = {name: _from_array(value) for name, value in state.items() if isinstance(value, np.ndarray)}
        vars(self).update({**state, **arrays})

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        history = None if self.history is None else self.history.map(function)
        return replace(self, history=history, **{name: function(value) for name, value in tensors.items()})


def collate(found: Sequence[SpokenExample | SkippedExample]) -> SpokenBatch:
    """Pad examples into a batch.

    Args:
        found: At least one example, all with the same fields, and what stands in for those left out.

    Returns:
        The batch, in the order of the examples.
    """
    examples = [example for example in found if isinstance(example, SpokenExample)]
    query, query_lengths = _pad([example.query for example in examples])
    units, unit_lengths = _pad([example.units for example in examples])
    reply, reply_lengths = _pad([example.reply for example in examples])
    text_ids, text_lengths = _pad([example.text_ids for example in examples])
    text_hidden, _ = _pad([example.text_hidden for example in examples])
    transcripts = [example.transcript for example in examples if example.transcript is not None]
    corpora = [example.corpus for example in examples if example.corpus is not None]
    assert {len(transcripts), len(corpora)} <= {0, len(examples)}, "examples of one batch have the same fields"
    return SpokenBatch(
        ids=[example.id for example in examples],
        reply_texts=[example.reply_text for example in examples],
        transcripts=transcripts or None,
        query=query,
        query_lengths=query_lengths,
        units=units,
        unit_lengths=unit_lengths,
        reply=reply,
        reply_lengths=reply_lengths,
        text_ids=text_ids,
        text_hidden=text_hidden,
        text_lengths=text_lengths,
        corpora=corpora or None,
        history=_history(examples),
        skipped=[example.problem for example in found if isinstance(example, SkippedExample)],
    )


def _history(examples: Sequence[SpokenExample]) -> History | None:
    if not any(example.history for example in examples):
        return None
    return History.of([example.history for example in examples], [example.history_speech for example in examples])


def _pad(rows: list[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    present = [row for row in rows if row is not None]
    if not present:
        return None, None
    assert len(present) == len(rows), "examples of one batch have the same fields"
    return pad_sequence(present, batch_first=True), torch.tensor([len(row) for row in present])


def _to_array(tensor: Tensor) -> np.ndarray:
    return bits_of(tensor) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _from_array(array: np.ndarray) -> Tensor:
    return from_bits(array) if array.dtype == np.uint16 else torch.from_numpy(array)
