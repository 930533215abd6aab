"""Measures what codecs leave of speech: its words and its voice, before any talker speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.formats.atomic_files import write_text
from datamodules.formats.released_layout import ReleasedLayout
from lightning_modules.errors import UserError
from lightning_modules.evaluation.word_error_rate import WordErrorRates, word_error_rates
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from lightning_modules.voice_classifier import VoiceClassifier

ORIGINAL = "original"
BATCH = 25


class ResynthesisFloor:
    """A job that sends the replies of corpora through codecs and lets judges hear originals and resynthesis.

    Args:
        corpora: Folders of corpora by name; the name is that of the voice of all its replies.
        vocoders: Vocoders by name, each with the codec that also makes the tokens.
        recognizer: The judge of words.
        voice_classifier: The judge of voices.
        split: Whose replies.
        max_examples: Uses only the first ones of each corpus.
        set_name: The folder of the set inside each corpus.

    Raises:
        UserError: If there is no corpus or vocoder, or the classifier does not know a voice.
    """

    def __init__(
        self,
        corpora: Mapping[str, str],
        vocoders: Mapping[str, CodecVocoder],
        recognizer: SpeechRecognizer,
        voice_classifier: VoiceClassifier,
        split: str = "test",
        max_examples: int = 200,
        set_name: str = "spoken_examples",
    ) -> None:
        require_at_least(1, max_examples=max_examples)
        unknown = sorted(set(corpora) - set(voice_classifier.voices))
        if unknown or not corpora or not vocoders:
            raise UserError(
                f"corpora={list(corpora)} and vocoders={list(vocoders)}: give at least one of each, and corpora by the "
                f"names of voices, {list(voice_classifier.voices)}"
            )
        self.corpora, self.vocoders = dict(corpora), dict(vocoders)
        self.recognizer, self.voice_classifier = recognizer.eval(), voice_classifier.eval()
        self.split, self.max_examples, self.set_name = split, max_examples, set_name

    def run(self, output_dir: Path | str) -> dict[str, float]:
        """Write `<output_dir>/results.md`.

        Args:
            output_dir: The run directory.

        Returns:
            By corpus and by `original` or the name of a codec: word error rate, share of replies in the corpus's own
            voice, and the mean L1 of log-mel.

        Raises:
            FileNotFoundError: If a corpus is not there.
        """
        metrics: dict[str, float] = {}
        lines = ["| replies | speech | WER % (95 %) | own voice % | log-mel L1 |", "|---|---|---|---|---|"]
        count = 0
        for corpus, folder in self.corpora.items():
            index = Path(folder) / self.set_name / f"{self.split}.json"
            texts, replies = read_replies(index, Path(folder), self.max_examples)
            count += len(texts)
            speech: dict[str, tuple[list[Tensor], float]] = {ORIGINAL: (replies, 0.0)}
            speech |= {name: resynthesize(vocoder, replies) for name, vocoder in self.vocoders.items()}
            for name, (waveforms, mel_l1) in speech.items():
                rates, share = self._judge(corpus, texts, waveforms)
                metrics |= {
                    f"{corpus}/{name}/wer": rates.micro,
                    f"{corpus}/{name}/own_voice": share,
                    f"{corpus}/{name}/mel_l1": mel_l1,
                }
                lines.append(f"| {corpus} | {name} | {rates.in_percent()} | {100 * share:.1f} | {mel_l1:.3f} |")
        lines += ["", f"{count} replies of the {self.split} splits; WER by {rates.normalizer}, against the gold reply"]
        write_text(Path(output_dir) / "results.md", "\n".join(lines) + "\n")
        return metrics

    def _judge(self, voice: str, texts: list[str], waveforms: list[Tensor]) -> tuple[WordErrorRates, float]:
        heard = in_batches(self.recognizer.transcribe, waveforms)
        voices = in_batches(self.voice_classifier.classify, waveforms)
        return word_error_rates(texts, heard), voices.count(voice) / len(voices)


def read_replies(index: Path, root: Path, max_examples: int | None) -> tuple[list[str], list[Tensor]]:
    """Read the gold replies of a split.

    Args:
        index: Its list of dialogues.
        root: What the list's files are relative to.
        max_examples: How many, from the first on; all if None.

    Returns:
        Texts, and speech, each ``(S,) float32``.
    """
    layout = ReleasedLayout(index, root, fields=("reply",), max_examples=max_examples)
    examples = [layout[position] for position in range(len(layout))]
    return [one.reply_text for one in examples], [one.reply for one in examples if one.reply is not None]


def in_batches(judge: Callable[[list[Tensor]], list[str]], waveforms: list[Tensor]) -> list[str]:
    """Let a judge hear all waveforms, some at a time."""
    starts = range(0, len(waveforms), BATCH)
    return [said for start in starts for said in judge(waveforms[start : start + BATCH])]


@torch.no_grad()
def resynthesize(vocoder: CodecVocoder, replies: list[Tensor]) -> tuple[list[Tensor], float]:
    """Send speech through a codec and its vocoder.

    Args:
        vocoder: With the codec.
        replies: Speech, each ``(S,) float32``.

    Returns:
        The speech that comes out, each ``(S',) float32``, and the mean L1 between the codec's log-mel and that of what
        went in.
    """
    codec = vocoder.codec
    spoken, errors, count = [], 0.0, 0
    for reply in replies:
        tokens = codec.encode(reply[None])[0]  # type: ignore[attr-defined]
        log_mel = codec.log_mel(F.pad(reply[None], (0, -len(reply) % codec.samples_per_token)))
        error = (codec.decode_mel(tokens) - log_mel).abs()
        errors, count = errors + float(error.sum()), count + error.numel()
        spoken.append(vocoder(tokens[0]).float())
    return spoken, errors / count
