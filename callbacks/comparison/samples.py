"""Audio of a comparison to listen to, with its transcripts and pictures, as files and in TensorBoard."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.comparison.board_table import write_table
from callbacks.comparison.pictures import draw_mel, draw_unmasking_order
from callbacks.comparison.rows import ComparisonRow, Record
from callbacks.comparison.selection import Selection
from callbacks.runtime.board_layout import add_layout
from datamodules.batch import SAMPLE_RATE_HZ
from datamodules.formats.atomic_files import write_json
from lightning_modules.evaluation.bootstrap import divide
from lightning_modules.evaluation.word_error_rate import count_word_errors

REFERENCE_RUN = "reference"
QUERY = "query"  # of all that is said, the name of what was asked


@dataclass(frozen=True)
class Sample:
    """What one decoding said to one query, and how it sounds.

    Attributes:
        record: What was said.
        waveform: ``(S,) float32`` on the CPU.
        sample_rate: In Hz.
    """

    record: Record
    waveform: Tensor
    sample_rate: int


@dataclass(frozen=True)
class Dialogue:
    """A query, and everything that was said to it.

    Attributes:
        example_id: Its name.
        gold: Text of the gold reply.
        transcript: The query as text, if it is known.
        query: ``(S,) float32`` at 16 kHz on the CPU.
        samples: Of the references, then of the decodings.
    """

    example_id: str
    gold: str
    transcript: str | None
    query: Tensor
    samples: list[Sample]

    @property
    def word_error_rate(self) -> float:
        """Word errors of all decodings over their words, references aside."""
        records = [one.record for one in self.samples if one.record.decoding is not None]
        pairs = [(one.text, one.heard) for one in records]
        if not pairs:
            return 0.0
        errors, words = count_word_errors(pairs)
        return float(divide(errors.sum(), words.sum()))


def write_samples(
    selection: Selection[Dialogue],
    rows: Sequence[ComparisonRow],
    block_sizes: Mapping[str, int],
    token_rate_hz: float,
    folder: Path,
) -> None:
    """Write dialogues and rows for people.

    Args:
        selection: The dialogues that are kept; those drawn at random go into TensorBoard, too.
        rows: The comparison; their scalars stand over the decoding steps per block.
        block_sizes: Speech tokens per block, by talker.
        token_rate_hz: Speech tokens per second of audio.
        folder: Gets `samples.json`, `audio/<example>/<decoding>.wav` with the queries beside them, and `tensorboard/`
            with one run per talker and rule.
    """
    chosen = {"worst": selection.worst(), "random": selection.at_random()}
    described = []
    for why, dialogues in chosen.items():
        for dialogue in dialogues:
            _write_audio(dialogue, folder / "audio")
            described.append(_describe(dialogue, why, block_sizes, token_rate_hz))
    write_json(folder / "samples.json", described)
    samples = [sample for dialogue in chosen["random"] for sample in dialogue.samples]
    runs = {row.name: folder / "tensorboard" / run_name(row) for row in rows}
    writers = {run: SummaryWriter(run) for run in dict.fromkeys(runs.values())}
    for row in rows:
        for tag, value in row.as_scalars().items():
            writers[runs[row.name]].add_scalar(tag, value, row.steps or 0)
    for sample in samples:
        if sample.waveform.numel():
            _show_sample(sample, writers[runs[sample.record.name]])
    for writer in writers.values():
        add_layout(writer)
    write_table(rows, folder / "tensorboard", folder.name)
    _draw_orders(samples, block_sizes, folder / "tensorboard")
    for writer in writers.values():
        writer.close()


def run_name(row: ComparisonRow) -> str:
    """Name the TensorBoard run of a row: talker and rule, or the references together."""
    return REFERENCE_RUN if row.talker is None else re.sub(r"[^\w.]+", "_", row.series).strip("_")


def _write_audio(dialogue: Dialogue, folder: Path) -> None:
    waveforms = {QUERY: (dialogue.query, SAMPLE_RATE_HZ)}
    waveforms |= {one.record.label: (one.waveform, one.sample_rate) for one in dialogue.samples}
    (folder / dialogue.example_id).mkdir(parents=True, exist_ok=True)
    for name, (waveform, rate_hz) in waveforms.items():
        if waveform.numel():
            soundfile.write(folder / dialogue.example_id / f"{name}.wav", waveform.clamp(-1, 1).numpy(), rate_hz)


def _describe(dialogue: Dialogue, why: str, block_sizes: Mapping[str, int], token_rate_hz: float) -> dict[str, Any]:
    """Give what people want to know of a dialogue beside its audio, for `samples.json`."""
    replies = []
    for sample in dialogue.samples:
        record, reply = sample.record, sample.record.reply
        described: dict[str, Any] = {
            "name": record.name,
            "audio": f"audio/{dialogue.example_id}/{record.label}.wav" if sample.waveform.numel() else None,
            "text": record.text,
            "heard": record.heard,
        }
        if record.decoding is not None and reply is not None:
            described |= {
                "talker": record.decoding.talker,
                "steps": record.decoding.num_steps,
                "block_size": block_sizes[record.decoding.talker],
                "tokens": reply.speech_tokens.tolist(),
                "order": reply.order.tolist(),
                "draft": reply.draft.tolist(),
                "passes": reply.num_forwards,
                "first_chunk_ms": reply.first_chunk_times.as_milliseconds() if reply.is_timed else None,
            }
        replies.append(described)
    return {
        "id": dialogue.example_id,
        "chosen": why,
        "query": f"audio/{dialogue.example_id}/{QUERY}.wav" if dialogue.query.numel() else None,
        "transcript": dialogue.transcript,
        "gold": dialogue.gold,
        "kind": dialogue.samples[0].record.kind if dialogue.samples else None,
        "word_error_rate": dialogue.word_error_rate,
        "token_rate_hz": token_rate_hz,
        "replies": replies,
    }


def _show_sample(sample: Sample, writer: SummaryWriter) -> None:
    record, waveform = sample.record, sample.waveform.clamp(-1, 1)
    step = 0 if record.decoding is None else record.decoding.num_steps or 0
    tag = f"test/{record.example_id}" + (f"/{record.label}" if record.decoding is None else "")
    writer.add_audio(tag, waveform, step, sample.sample_rate)
    words = f"**{record.name}**\n\n**said** {record.text}\n\n**heard** {record.heard}\n\n**gold** {record.gold}"
    writer.add_text(tag, words, step)
    writer.add_figure(tag, draw_mel(waveform, sample.sample_rate, f"{record.name}: {record.heard}"), step)


def _draw_orders(samples: Sequence[Sample], block_sizes: Mapping[str, int], folder: Path) -> None:
    """Draw in which step each token was revealed, for talkers that reveal several at once, into a run of the talker."""
    orders: dict[tuple[str, str], dict[str, tuple[int, Tensor]]] = {}
    texts: dict[str, str] = {}
    for sample in samples:
        decoding, reply = sample.record.decoding, sample.record.reply
        if decoding is None or reply is None or not len(reply.order):
            continue
        texts[sample.record.example_id] = sample.record.text
        strips = orders.setdefault((decoding.talker, sample.record.example_id), {})
        strips[sample.record.name] = (decoding.num_steps or 1, reply.order)
    writers = {talker: SummaryWriter(folder / talker) for talker, _ in orders}
    for (talker, example_id), strips in orders.items():
        figure = draw_unmasking_order(strips, block_sizes[talker], texts[example_id])
        writers[talker].add_figure(f"unmasking/{example_id}", figure)
    for writer in writers.values():
        writer.close()
