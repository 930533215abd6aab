"""One row of the comparison per decoding, from one record per example."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from torch import Tensor

from callbacks.comparison.intervals import median_interval, summarize_sound
from lightning_modules.evaluation.sound.sound_quality import SoundQuality
from lightning_modules.evaluation.text_normalization import NORMALIZER_NAME
from lightning_modules.evaluation.word_error_rate import word_error_rates
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.talker.decoding.decoding import Decoding

ORIGINAL = "original audio"
RESYNTHESIS = "codec resynthesis"


@dataclass
class Record:
    """What one decoding said to one query.

    Attributes:
        name: Of the decoding, or of the reference.
        example_id: Of the dialogue.
        gold: Text of the gold reply.
        text: Text that should be heard: the thinker's reply, or the gold one for a reference.
        num_tokens: Speech tokens.
        num_gold_tokens: Speech tokens of the gold reply.
        is_repeating: The speech is caught in a loop.
        decoding: How it was decoded; None for a reference.
        reply: Costs of a reply (without its waveform); None for a reference.
        heard: What the recognizer heard.
        voice: Whose voice it is, if a classifier was asked; empty if there was nothing to hear.
        kind: Of the query, if the test knows kinds.
        sound: How it sounds.
        naturalness: Predicted mean opinion score, if a judge was asked.
    """

    name: str
    example_id: str
    gold: str
    text: str
    num_tokens: int
    num_gold_tokens: int
    is_repeating: bool
    decoding: Decoding | None = None
    reply: SpokenReply | None = None
    heard: str = ""
    voice: str | None = None
    kind: str | None = None
    sound: SoundQuality | None = None
    naturalness: float | None = None

    @classmethod
    def of_reference(cls, name: str, example_id: str, gold: str, units: Tensor, token_rate_hz: float) -> "Record":
        """Record a reference that speaks the gold reply."""
        repeating = is_repeating(units.tolist(), token_rate_hz)
        return cls(name, example_id, gold, gold, len(units), len(units), repeating)

    @classmethod
    def of_reply(
        cls,
        name: str,
        decoding: Decoding,
        example_id: str,
        gold: str,
        units: Tensor,
        reply: SpokenReply,
        token_rate_hz: float,
    ) -> "Record":
        """Record a reply; its waveform is left out, so that a long test does not fill the memory."""
        tokens = reply.speech_tokens.tolist()
        light = SpokenReply(**{**vars(reply), "waveform": reply.waveform[:0]})
        repeating = is_repeating(tokens, token_rate_hz)
        return cls(name, example_id, gold, reply.text, len(tokens), len(units), repeating, decoding, light)

    @property
    def label(self) -> str:
        """The name, for files."""
        return self.name.replace(" ", "-")

    def as_transcript(self) -> dict[str, str]:
        """Give what was to be said and what was heard, in whose voice, and the kind of query."""
        words = {"gold": self.gold, "text": self.text, "heard": self.heard}
        known = {"voice": self.voice, "kind": self.kind}
        return {
            "id": self.example_id,
            "decoding": self.name,
            **words,
            **{k: v for k, v in known.items() if v is not None},
        }


@dataclass
class ComparisonRow:
    """One line of the comparison; rates are shares of 1, times are medians over the examples.

    Attributes:
        name: Of the decoding, or of the reference.
        talker: Talker that speaks; None for a reference.
        steps: Decoding steps per block; None for a reference.
        rule: How a block is filled beside that, in words; empty for the paper's way.
        num_examples: Test dialogues.
        wer_micro: Word errors over all words.
        wer_interval: 95 % interval of that, by bootstrap over the examples.
        wer_macro: Mean of the examples' word error rates.
        wer_gold_micro: Word errors against the gold reply over all its words: the thinker's mistakes count, too.
        wer_gold_interval: 95 % interval of that.
        voices: Share of examples in each voice, if a classifier was asked.
        text_exact_match: Share of examples whose text reply equals the gold one.
        tokens_per_s: Speech tokens per second of the talker alone, batch 1.
        rtf: Seconds of the talker alone per second of speech.
        forwards_per_block: Network passes per block, those that commit included, over all blocks but the last.
        first_chunk_ms: Milliseconds until the first samples, by part and in total.
        first_chunk_audio_ms: Milliseconds of audio that the first samples hold.
        length_ratio: Speech tokens over those of the gold replies.
        failures: Shares of empty, truncated (never said EOS) and repeating output.
        sound: How it sounds: change of timbre and loudness where chunks meet over that elsewhere, shares of silence and
            of repeated words, and predicted naturalness, where they are known.
        intervals: 95 % intervals by bootstrap over the examples: of ``rtf``, of ``first_chunk_ms`` and of ``sound``.
        normalizer: What both texts of the WER went through.
    """

    name: str
    talker: str | None
    steps: int | None
    rule: str
    num_examples: int
    wer_micro: float
    wer_interval: tuple[float, float]
    wer_macro: float
    wer_gold_micro: float
    wer_gold_interval: tuple[float, float]
    voices: dict[str, float] = field(default_factory=dict)
    text_exact_match: float | None = None
    tokens_per_s: float | None = None
    rtf: float | None = None
    forwards_per_block: float | None = None
    first_chunk_ms: dict[str, float] = field(default_factory=dict)
    first_chunk_audio_ms: float | None = None
    length_ratio: float = 1.0
    failures: dict[str, float] = field(default_factory=dict)
    sound: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    normalizer: str = NORMALIZER_NAME

    @property
    def series(self) -> str:
        """What rows have in common that differ in nothing but their steps: talker and rule, or the reference."""
        return self.name if self.talker is None else self.talker + (f" ({self.rule})" if self.rule else "")

    def as_scalars(self) -> dict[str, float]:
        """Numbers for TensorBoard under tags that are the same for every talker."""
        names = (
            "wer_micro",
            "wer_macro",
            "wer_gold_micro",
            "text_exact_match",
            "tokens_per_s",
            "rtf",
            "forwards_per_block",
            "length_ratio",
        )
        scalars = {f"decode/{name}": float(getattr(self, name)) for name in names if getattr(self, name) is not None}
        scalars |= {f"decode/voice/{voice}": share for voice, share in self.voices.items()}
        scalars |= {f"decode/sound/{name}": value for name, value in self.sound.items()}
        scalars |= {f"decode/first_chunk_ms/{part}": value for part, value in self.first_chunk_ms.items()}
        return scalars | {f"decode/failures/{kind}": share for kind, share in self.failures.items()}


def is_repeating(
    tokens: Sequence[int], token_rate_hz: float, longest_period_s: float = 0.64, shortest_loop_s: float = 2.0
) -> bool:
    """Tell whether speech is caught in a loop.

    Args:
        tokens: Speech tokens.
        token_rate_hz: Tokens per second.
        longest_period_s: Longest loop body looked for, in seconds.
        shortest_loop_s: Seconds of repeated tokens that make a loop, longer than any pause or drawn-out vowel.

    Returns:
        True if ``tokens[i] == tokens[i - period]`` for so many tokens on end, at any period.
    """
    longest_period, shortest_loop = round(longest_period_s * token_rate_hz), round(shortest_loop_s * token_rate_hz)
    for period in range(1, longest_period + 1):
        run = 0
        for now, before in zip(tokens[period:], tokens, strict=False):
            run = run + 1 if now == before else 0
            if run >= shortest_loop:
                return True
    return False


def summarize(records: Sequence[Record], token_rate_hz: float, voices: Sequence[str] = ()) -> list[ComparisonRow]:
    """Sum up the records of each decoding, in order of first appearance.

    Args:
        records: One per decoding and example.
        token_rate_hz: Speech tokens per second of audio.
        voices: Those that a classifier told apart.

    Returns:
        One row per decoding; the references have no text match and no costs.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.name, []).append(record)
    return [_summarize_group(name, group, token_rate_hz, voices) for name, group in groups.items()]


def _summarize_group(name: str, group: list[Record], token_rate_hz: float, voices: Sequence[str]) -> ComparisonRow:
    heard = [record.heard for record in group]
    rates = word_error_rates([record.text for record in group], heard)
    gold_rates = word_error_rates([record.gold for record in group], heard)
    decoding = group[0].decoding
    talker, steps, rule = (None, None, "") if decoding is None else (decoding.talker, decoding.num_steps, decoding.rule)
    own, gold = (rates.micro, rates.interval, rates.macro), (gold_rates.micro, gold_rates.interval)
    row = ComparisonRow(name, talker, steps, rule, len(group), *own, *gold)
    row.voices = {voice: fmean(record.voice == voice for record in group) for voice in voices}
    row.length_ratio = sum(record.num_tokens for record in group) / sum(record.num_gold_tokens for record in group)
    row.failures = {
        "empty": fmean(record.num_tokens == 0 for record in group),
        "truncated": fmean(record.reply is not None and not record.reply.ended for record in group),
        "repeating": fmean(record.is_repeating for record in group),
    }
    heard_and_said = [(record.text, record.heard) for record in group]
    row.sound, row.intervals = summarize_sound(
        [record.sound for record in group], heard_and_said, [record.naturalness for record in group]
    )
    replies = [record.reply for record in group if record.reply is not None]
    if replies:
        matches = [record.text.strip() == record.gold.strip() for record in group]
        row.text_exact_match = fmean(matches)
    timed = [reply for reply in replies if reply.is_timed]
    if timed:
        speeds = [len(reply.speech_tokens) / reply.times.talker_s for reply in timed]
        row.tokens_per_s = median(speeds)
        if row.tokens_per_s:
            row.rtf = token_rate_hz / row.tokens_per_s
            # The longest time goes with the lowest speed; an empty reply has none.
            factors = [token_rate_hz / speed if speed else float("inf") for speed in speeds]
            row.intervals["rtf"] = median_interval(factors)
        row.forwards_per_block = _forwards_per_block(timed)
        parts = [reply.first_chunk_times.as_milliseconds() for reply in timed]
        row.first_chunk_ms = {name: median(part[name] for part in parts) for name in parts[0]}
        row.intervals["first_chunk_ms"] = median_interval([part["total"] for part in parts])
        row.first_chunk_audio_ms = median(1000 * reply.first_chunk_audio_s for reply in timed)
    return row


def _forwards_per_block(replies: Sequence[SpokenReply]) -> float:
    # An autoregressive talker stops inside its last block: whole blocks alone compare.
    whole = [count for reply in replies for count in reply.num_forwards[:-1]]
    return fmean(whole or [count for reply in replies for count in reply.num_forwards])


def format_table(rows: Sequence[ComparisonRow]) -> str:
    """Lay the rows out as a table of plain text, percentages as such."""
    header = (
        "decoding", "talker", "steps", "rule", "WER % micro", "95 %", "macro", "gold WER %", "text exact %", "tokens/s",
        "RTF", "fwd/block", "first chunk ms (encoder+thinker+talker+vocoder)", "length", "empty/cut/loop %",
        "drift timbre/level", "silent/again %", *(["MOS"] if "naturalness" in rows[0].sound else []),
        *([f"voice % {'/'.join(rows[0].voices)}"] if rows[0].voices else []),
    )  # fmt: skip
    lines = [header, *(_format_row(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    laid_out = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    rule = "-" * max(map(len, laid_out))
    against = "against the thinker's own text; gold WER against the gold reply."
    count = f"{rows[0].num_examples} test dialogues; WER by {rows[0].normalizer}, {against}"
    return "\n".join([laid_out[0], rule, *laid_out[1:], rule, count])


def _format_row(row: ComparisonRow) -> tuple[str, ...]:
    def show(value: float | None, pattern: str, scale: float = 1.0) -> str:
        return "-" if value is None else pattern.format(scale * value)

    parts = [row.first_chunk_ms.get(name, 0.0) for name in ("speech_encoder", "thinker", "talker", "vocoder")]
    first = (
        f"{row.first_chunk_ms['total']:.0f} = " + " + ".join(f"{part:.0f}" for part in parts)
        if row.first_chunk_ms
        else "-"
    )
    return (
        row.name,
        row.talker or "-",
        show(row.steps, "{:.0f}"),
        row.rule or "-",
        show(row.wer_micro, "{:.2f}", 100),
        " to ".join(f"{100 * bound:.1f}" for bound in row.wer_interval),
        show(row.wer_macro, "{:.2f}", 100),
        show(row.wer_gold_micro, "{:.2f}", 100),
        show(row.text_exact_match, "{:.1f}", 100),
        show(row.tokens_per_s, "{:.0f}"),
        show(row.rtf, "{:.4f}"),
        show(row.forwards_per_block, "{:.2f}"),
        first,
        show(row.length_ratio, "{:.3f}"),
        _percentages(row.failures),
        "/".join(show(row.sound.get(name), "{:.2f}") for name in ("timbre_drift", "loudness_drift")),
        "/".join(show(row.sound.get(name), "{:.0f}", 100) for name in ("silent_share", "repeated_share")),
        *([show(row.sound["naturalness"], "{:.2f}")] if "naturalness" in row.sound else []),
        *([_percentages(row.voices)] if row.voices else []),
    )


def _percentages(shares: dict[str, float]) -> str:
    return "/".join(f"{100 * share:.0f}" for share in shares.values())
