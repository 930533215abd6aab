"""Audio of a comparison to listen to, with its transcripts and pictures, as files and in TensorBoard."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.comparison.board_table import write_table
from callbacks.comparison.pictures import draw_mel, draw_unmasking_order
from callbacks.comparison.rows import ComparisonRow, Record
from callbacks.runtime.board_layout import add_layout

REFERENCE_RUN = "reference"


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


def write_samples(
    samples: Sequence[Sample], rows: Sequence[ComparisonRow], block_sizes: Mapping[str, int], folder: Path
) -> None:
    """Write samples and rows for people.

    Args:
        samples: What was said to the dialogues that are kept.
        rows: The comparison; their scalars stand over the decoding steps per block.
        block_sizes: Speech tokens per block, by talker.
        folder: Gets `audio/<example>/<decoding>.wav`, and `tensorboard/` with one run per talker and rule.
    """
    runs = {row.name: folder / "tensorboard" / run_name(row) for row in rows}
    writers = {run: SummaryWriter(run) for run in dict.fromkeys(runs.values())}
    for row in rows:
        for tag, value in row.as_scalars().items():
            writers[runs[row.name]].add_scalar(tag, value, row.steps or 0)
    for sample in samples:
        if sample.waveform.numel():
            _write_sample(sample, writers[runs[sample.record.name]], folder / "audio")
    for writer in writers.values():
        add_layout(writer)
    write_table(rows, folder / "tensorboard", folder.name)
    _draw_orders(samples, block_sizes, folder / "tensorboard")
    for writer in writers.values():
        writer.close()


def run_name(row: ComparisonRow) -> str:
    """Name the TensorBoard run of a row: talker and rule, or the references together."""
    return REFERENCE_RUN if row.talker is None else re.sub(r"[^\w.]+", "_", row.series).strip("_")


def _write_sample(sample: Sample, writer: SummaryWriter, folder: Path) -> None:
    record, waveform = sample.record, sample.waveform.clamp(-1, 1)
    path = folder / record.example_id / f"{record.label}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform.numpy(), sample.sample_rate)
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
