"""A job that resynthesizes replies with several vocoders, and compares words, sound and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from callbacks.comparison.comparison import at_rate
from datamodules.batch import SAMPLE_RATE_HZ
from datamodules.formats.atomic_files import write_json, write_text
from datamodules.formats.released_layout import ReleasedLayout
from lightning_modules.acoustics.log_mel import LOG_STD, LogMel
from lightning_modules.errors import UserError
from lightning_modules.evaluation.word_error_rate import word_error_rates
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.vocoder.base import Vocoder

ORIGINAL = "original"
DECIBELS = 8.685889638  # per unit of the natural logarithm of a magnitude


@dataclass
class VocoderRow:
    """What one vocoder made of all replies; times are medians over the replies.

    Attributes:
        name: Of the vocoder, or `original`.
        wer: Word error rate of what the recognizer heard against the reply's text, micro.
        wer_interval: 95 % interval of that, by bootstrap over the replies.
        mel_distance_db: Mean absolute difference of the mel bands from those of the original.
        rtf: Seconds per second of speech, a whole reply at a time.
        time_ratio: Time over that of the first vocoder, reply by reply.
        first_samples_ms: From the first block of tokens to the first samples of a stream.
        first_samples_audio_ms: Milliseconds of audio that these hold.
    """

    name: str
    wer: float
    wer_interval: tuple[float, float]
    mel_distance_db: float = 0.0
    rtf: float = 0.0
    time_ratio: float = 0.0
    first_samples_ms: float = 0.0
    first_samples_audio_ms: float = 0.0


class VocoderComparison:
    """Compares vocoders on the same tokens; each reply goes through all of them, in turn, before the next one.

    Args:
        vocoders: Vocoders by name; times are compared with the first one's.
        recognizer: The judge of words.
        examples: Replies with their speech tokens, fields "reply" and "units".
        first_tokens: Tokens of the first block that a talker hands over.
        picture_example: Place of the reply that is drawn.

    Raises:
        UserError: If there is no vocoder, a number is negative, or the examples lack a field.
    """

    def __init__(
        self,
        vocoders: Mapping[str, Vocoder],
        recognizer: SpeechRecognizer,
        examples: ReleasedLayout,
        first_tokens: int = 16,
        picture_example: int = 0,
    ) -> None:
        require_at_least(1, first_tokens=first_tokens)
        require_at_least(0, picture_example=picture_example)
        if not vocoders:
            raise UserError("vocoders is empty; give at least one")
        missing = [name for name in ("reply", "units") if name not in examples.fields]
        if missing:
            raise UserError(
                f"examples: reads {list(examples.fields)}, but {missing} are needed; add them to its fields"
            )
        self.vocoders = {name: vocoder.eval() for name, vocoder in vocoders.items()}
        self.recognizer = recognizer.eval()
        self.examples = examples
        self.first_tokens = first_tokens
        self.picture_example = picture_example
        self.log_mel = LogMel()

    @torch.no_grad()
    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `results.json`, `results.md`, `transcripts.json` and `mels.png`.

        Args:
            output_dir: The run directory.

        Returns:
            `<vocoder>/<figure>` for all figures.

        Raises:
            FileNotFoundError: If the corpus or its tokens are missing.
            UserError: If there is no such example to draw.
        """
        num_examples = len(self.examples)
        if self.picture_example >= num_examples:
            raise UserError(f"picture_example is {self.picture_example}, but there are {num_examples}, from 0 on")
        names = list(self.vocoders)
        gold: list[str] = []
        heard: dict[str, list[str]] = {name: [] for name in (ORIGINAL, *names)}
        costs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for place in tqdm(range(num_examples), desc="resynthesis", unit="reply"):
            example = self.examples[place]
            assert example.units is not None and example.reply is not None, "both are read"
            original = F.pad(example.reply, (0, -len(example.reply) % self.log_mel.hop_samples))
            sounds = {ORIGINAL: original}
            # Each goes first as often as the others: the first one finds the memory cold.
            for name in names[place % len(names) :] + names[: place % len(names)]:
                sounds[name], cost = self._resynthesize(self.vocoders[name], example.units)
                cost["mel_distance_db"] = self._mel_distance_db(sounds[name], original)
                costs[name].append(cost)
            gold.append(example.reply_text)
            transcripts = self.recognizer.transcribe(
                [at_rate(sounds[name], SAMPLE_RATE_HZ, self.recognizer.sample_rate) for name in heard]
            )
            for name, transcript in zip(heard, transcripts, strict=True):
                heard[name].append(transcript)
            if place == self.picture_example:
                draw_mels({name: self._mel_db(sounds[name]) for name in heard}, example.reply_text).savefig(
                    Path(output_dir) / "mels.png", dpi=60
                )
        rows = [self._row(name, gold, heard[name], costs) for name in heard]
        write_json(Path(output_dir) / "results.json", [asdict(row) for row in rows])
        write_json(Path(output_dir) / "transcripts.json", {"gold": gold, **heard})
        table = format_table(rows, num_examples, self.first_tokens)
        write_text(Path(output_dir) / "results.md", table)
        tqdm.write(table)
        return {
            f"{row.name}/{key}": value for row in rows for key, value in asdict(row).items() if isinstance(value, float)
        }

    def _resynthesize(self, vocoder: Vocoder, units: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Turn tokens into samples at the corpus's rate, as a whole and as a stream's first block, and time both."""
        begin = time.perf_counter()
        whole = vocoder(units).float().cpu()
        cost = {"seconds": time.perf_counter() - begin}
        cost["rtf"] = cost["seconds"] * vocoder.sample_rate / max(1, len(whole))
        stream = vocoder.stream()
        begin = time.perf_counter()
        first = stream.push(units[: self.first_tokens], last=len(units) <= self.first_tokens)
        cost["first_samples_ms"] = 1000 * (time.perf_counter() - begin)
        cost["first_samples_audio_ms"] = 1000 * len(first) / vocoder.sample_rate
        return at_rate(whole, vocoder.sample_rate, SAMPLE_RATE_HZ), cost

    def _mel_db(self, waveform: Tensor) -> Tensor:
        """Compute mel bands in decibels, ``(80, F)``, with a floor 80 dB below a full-scale sine."""
        return self.log_mel(waveform[None])[0] * LOG_STD * DECIBELS

    def _mel_distance_db(self, waveform: Tensor, original: Tensor) -> float:
        length = min(len(waveform), len(original))
        return float((self._mel_db(waveform[:length]) - self._mel_db(original[:length])).abs().mean())

    def _row(
        self, name: str, gold: list[str], heard: list[str], costs: Mapping[str, list[dict[str, float]]]
    ) -> VocoderRow:
        rates = word_error_rates(gold, heard)
        row = VocoderRow(name, rates.micro, rates.interval)
        if name in costs:
            own, first = costs[name], costs[next(iter(self.vocoders))]
            row.mel_distance_db = statistics.fmean(cost["mel_distance_db"] for cost in own)
            for key in ("rtf", "first_samples_ms", "first_samples_audio_ms"):
                setattr(row, key, statistics.median(cost[key] for cost in own))
            row.time_ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(own, first, strict=True))
        return row


def format_table(rows: list[VocoderRow], num_examples: int, first_tokens: int) -> str:
    """Lay the rows out as a Markdown table."""
    lines = [
        "| speech | WER % | 95 % | mel distance dB | RTF | time ratio | first samples ms | audio in them ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name, f"{100 * row.wer:.2f}", " to ".join(f"{100 * bound:.1f}" for bound in row.wer_interval)]
        cells += [f"{row.mel_distance_db:.2f}", f"{row.rtf:.4f}", f"{row.time_ratio:.2f}"] if row.rtf else ["-"] * 3
        cells += [f"{row.first_samples_ms:.1f}", f"{row.first_samples_audio_ms:.0f}"] if row.rtf else ["-"] * 2
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", f"{num_examples} replies; the first block of a stream holds {first_tokens} tokens.", ""]
    )


def draw_mels(mels: Mapping[str, Tensor], title: str) -> Figure:
    """Draw mel spectrograms below each other.

    Args:
        mels: Mel bands in decibels by name, each ``(80, F)``.
        title: What is said.

    Returns:
        The figure; nothing is shown or saved.
    """
    figure = Figure(figsize=(8, 0.8 + 1.3 * len(mels)), layout="constrained")
    all_axes = figure.subplots(len(mels), 1, sharex=True, squeeze=False)[:, 0]
    highest = max(float(mel.max()) for mel in mels.values())
    for axes, (name, mel) in zip(all_axes, mels.items(), strict=True):
        image = axes.imshow(
            mel.numpy() - highest, origin="lower", aspect="auto", cmap="magma", vmin=-60, vmax=0,
            extent=(0, mel.shape[1] / 100, 0, len(mel)),
        )  # fmt: skip
        axes.set_ylabel("mel band")
        axes.set_title(name, loc="left", fontsize="medium", parse_math=False)
    all_axes[-1].set_xlabel("time (s)")
    figure.suptitle(title, fontsize="medium", parse_math=False)
    figure.colorbar(image, ax=list(all_axes), label="dB")
    return figure
