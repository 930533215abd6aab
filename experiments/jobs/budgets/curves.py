"""Curves of word errors over steps and over operations of a training, for people and for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from torch.utils.tensorboard import SummaryWriter

from experiments.jobs.budgets.points import Point, by_trial

WER_TICKS = (0, 1, 2, 5, 10, 20, 50, 100)
AXES = {"steps": ("step", 1.0), "training compute (TFLOP)": ("flops", 1e12)}


def draw_curves(points: Sequence[Point], chosen: Mapping[str, Point]) -> Figure:
    """Draw word errors over steps, and over the operations of the talker's training beside it.

    Args:
        points: Of all trials.
        chosen: By talker.

    Returns:
        A row for each decoding that decides and one for all others; the chosen trial of a talker with intervals over
        dialogues and a ring at the chosen step, its other trials as thin lines.
    """
    deciding = {one.decoding for one in chosen.values()}
    rows = [deciding, {one.decoding for one in points} - deciding]
    rows = [row for row in rows if row]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(one.talker for one in points))}
    figure = Figure(figsize=(14, 4.2 * len(rows)), layout="constrained")
    all_axes = figure.subplots(len(rows), len(AXES), sharey="row", squeeze=False)
    for shown, of_row in zip(rows, all_axes, strict=True):
        names = [name for name in dict.fromkeys(one.decoding for one in points) if name in shown]
        for axes, (label, (attribute, unit)) in zip(of_row, AXES.items(), strict=True):
            for name in names:
                own = [one for one in points if one.decoding == name]
                _draw_decoding(axes, own, chosen, attribute, unit, numbers[own[0].talker])
            axes.set(xlabel=label)
            axes.set_yscale("symlog", linthresh=1)
            axes.set_yticks(WER_TICKS, labels=[str(one) for one in WER_TICKS])
            axes.set_ylim(bottom=min(1.0, *(100 * one.wer.low for one in points)))
            axes.grid(alpha=0.3, which="both")
        of_row[0].set_ylabel("WER % on validation dialogues")
        # beside the curves, of which it would hide some
        of_row[1].legend(*of_row[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for of_row in all_axes:
        of_row[1].set_xscale("log")
        of_row[1].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        of_row[1].xaxis.set_major_formatter(ScalarFormatter())
        of_row[1].xaxis.set_minor_formatter(NullFormatter())
    return figure


def _draw_decoding(
    axes, own: Sequence[Point], chosen: Mapping[str, Point], attribute: str, unit: float, number: int
) -> None:
    best = chosen[own[0].talker]
    for trial, line in by_trial(own).items():
        x = [getattr(one, attribute) / unit for one in line]
        y = [100 * one.wer.value for one in line]
        if trial != best.trial:
            axes.plot(x, y, "-", color=f"C{number}", linewidth=0.6, alpha=0.5)
            continue
        bars = [
            [100 * (one.wer.value - one.wer.low) for one in line],
            [100 * (one.wer.high - one.wer.value) for one in line],
        ]
        label = f"{own[0].decoding}, rate {best.learning_rate:g}, {line[-1].step:,} steps"
        axes.errorbar(x, y, bars, fmt="o-", color=f"C{number}", capsize=3, markersize=4, label=label)
        at = next(index for index, one in enumerate(line) if one.step == best.step)
        axes.plot(x[at], y[at], "o", color=f"C{number}", markersize=11, fillstyle="none")


def write_board(points: Sequence[Point], deciding: Mapping[str, str], folder: Path) -> None:
    """Write a TensorBoard run for each talker and trial, named by rate and length, with the same tags for all.

    ``val/wer`` is that of the decoding that decides, over steps; ``val/wer_over_gflop`` has operations in its place,
    in units of 1e9. Other decodings stand under ``val/wer/<decoding>``.

    Args:
        points: Of all trials.
        deciding: The decoding that decides, by talker.
        folder: Gets the runs.
    """
    for talker in dict.fromkeys(one.talker for one in points):
        for line in by_trial([one for one in points if one.talker == talker]).values():
            name = f"{talker}_rate_{line[0].learning_rate:g}_steps_{line[-1].step}"
            with SummaryWriter(folder / name) as writer:
                for one in line:
                    tag = "val/wer" if one.decoding == deciding[talker] else f"val/wer/{one.decoding}"
                    writer.add_scalar(tag, one.wer.value, one.step)
                    if one.decoding == deciding[talker]:
                        writer.add_scalar("val/wer_over_gflop", one.wer.value, round(one.flops / 1e9))
