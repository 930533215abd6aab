"""Pictures for people: mel spectrograms, the order of unmasking, the trade-off of speed and quality."""

from collections.abc import Mapping, Sequence

import librosa
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from callbacks.comparison.rows import ComparisonRow

MISSING = "\N{WHITE SQUARE}"


def draw_mel(waveform: Tensor, sample_rate: int, title: str = "") -> Figure:
    """Draw the log-mel spectrogram of a waveform.

    Args:
        waveform: ``(S,) float32``.
        sample_rate: In Hz.
        title: What was heard.

    Returns:
        The figure; nothing is shown or saved.
    """
    power = librosa.feature.melspectrogram(y=waveform.numpy(), sr=sample_rate, n_fft=1024, hop_length=160, n_mels=80)
    decibels = librosa.power_to_db(power, ref=np.max)
    # Working out a layout for each of a hundred pictures takes longer than the pictures.
    figure = Figure(figsize=(8, 2.6))
    axes = figure.add_axes((0.07, 0.2, 0.8, 0.66))
    image = axes.imshow(
        decibels, origin="lower", aspect="auto", cmap="magma", extent=(0, len(waveform) / sample_rate, 0, 80)
    )
    axes.set(xlabel="time (s)", ylabel="mel bin")
    axes.set_title(_drawable(title), parse_math=False)
    figure.colorbar(image, cax=figure.add_axes((0.89, 0.2, 0.015, 0.66)), label="dB")
    return figure


def draw_unmasking_order(orders: Mapping[str, tuple[int, Tensor]], block_size: int, title: str = "") -> Figure:
    """Draw when each speech token of a reply was revealed, one strip per decoding.

    Args:
        orders: By decoding, the steps per block that it may take, and the step that revealed each token, from 0,
            ``(T,) int64``.
        block_size: Tokens per block, for the lines between them.
        title: What was said.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(9, 0.9 + 0.55 * len(orders)), layout="constrained")
    all_axes = figure.subplots(len(orders), 1, sharex=True, squeeze=False)[:, 0]
    longest = max(len(order) for _, order in orders.values())
    for axes, (name, (num_steps, order)) in zip(all_axes, orders.items(), strict=True):
        # From 0, the first step, to 1, the last one allowed, so that strips of few steps have as many colours.
        share = order[None].numpy() / max(1, num_steps - 1)
        image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        for boundary in range(block_size, longest, block_size):
            axes.axvline(boundary - 0.5, color="white", linewidth=1.5)
        axes.set_xlim(-0.5, longest - 0.5)
        axes.set_yticks([0], labels=[name])
    all_axes[0].set_title(_drawable(title), fontsize="medium", parse_math=False)
    all_axes[-1].set_xlabel("speech token")
    bar = figure.colorbar(image, ax=list(all_axes), label="revealed in step")
    bar.set_ticks([0, 1], labels=["first", "last"])
    return figure


def _drawable(text: str) -> str:
    """Put a square for each character that the font of the pictures lacks: a language model may say anything."""
    font = get_font(findfont(FontProperties()))
    return "".join(char if font.get_char_index(ord(char)) else MISSING for char in text)


def draw_pareto(rows: Sequence[ComparisonRow]) -> Figure:
    """Draw word error rate over the talker's real-time factor: a line per talker and rule, a point per number of steps.

    Args:
        rows: The comparison; references become horizontal lines.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(dict.fromkeys(row.series for row in rows)):
        own = [row for row in rows if row.series == name]
        timed = [(row.rtf, 100 * row.wer_micro, row.steps) for row in own if row.rtf is not None]
        if not timed:
            axes.axhline(100 * own[0].wer_micro, linestyle=":", color=f"C{index}", label=name)
            continue
        axes.plot([rtf for rtf, _, _ in timed], [wer for _, wer, _ in timed], "o-", color=f"C{index}", label=name)
        for rtf, wer, steps in timed:
            axes.annotate(f"{steps}", (rtf, wer), textcoords="offset points", xytext=(4, 4))
    axes.set(
        xscale="log", xlabel="real-time factor of the talker", ylabel="WER (%)", title="steps per block at each point"
    )
    # Labels at 1, 2 and 5 of each decade: more of them would run into each other.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rtf, _: f"{rtf:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))  # beside the points, not over them
    return figure
