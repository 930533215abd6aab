"""Stops an experiment whose judge or codec is too weak for its corpus, before a talker trains on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.formats.atomic_files import write_text
from datamodules.formats.released_items import read_entries
from datamodules.synthetic.expressive_speech import groups_by_tempo
from experiments.jobs.vocoders.resynthesis_floor import ORIGINAL, in_batches, read_replies, resynthesize
from lightning_modules.errors import UserError
from lightning_modules.evaluation.word_error_rate import word_error_rates
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.vocoder.codec_vocoder import CodecVocoder

RESYNTHESIS = "resynthesis"
TEMPO = "reply_tempo"


class SpeechGate:
    """A job that lets a judge hear held-out replies, as they were and from the codec, and fails if it mishears them.

    A talker is judged by what the judge hears of the codec's speech. Where that is wrong already, word errors say
    little about the talker; so they must be few among all replies, and in each group of replies of similar tempo.

    Args:
        corpus: Folder of an expressive corpus, whose items have the key `reply_tempo`.
        vocoder: With the codec that also makes the tokens.
        recognizer: The judge.
        max_original_wer: Largest word error rate on the replies as they were, as a share.
        max_resynthesis_wer: Largest word error rate on what comes out of the codec, as a share.
        num_groups: Groups of equally many replies by tempo; 4 are its quartiles.
        is_required: Fails if a rate is too large; False only reports it.
        split: Whose replies.
        max_examples: Uses only the first ones; all if None.
        set_name: The folder of the set inside the corpus.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        corpus: str,
        vocoder: CodecVocoder,
        recognizer: SpeechRecognizer,
        max_original_wer: float = 0.02,
        max_resynthesis_wer: float = 0.04,
        num_groups: int = 4,
        is_required: bool = True,
        split: str = "test",
        max_examples: int | None = None,
        set_name: str = "spoken_examples",
    ) -> None:
        require_at_least(0, max_original_wer=max_original_wer, max_resynthesis_wer=max_resynthesis_wer)
        require_at_least(1, num_groups=num_groups, max_examples=max_examples)
        self.corpus = Path(corpus)
        self.vocoder, self.recognizer = vocoder, recognizer.eval()
        self.limits = {ORIGINAL: max_original_wer, RESYNTHESIS: max_resynthesis_wer}
        self.num_groups, self.is_required = num_groups, is_required
        self.split, self.max_examples, self.set_name = split, max_examples, set_name

    def run(self, output_dir: Path | str) -> dict[str, float]:
        """Write `<output_dir>/results.md`, whether the gate opens or not.

        Args:
            output_dir: The run directory.

        Returns:
            Word error rates by `original` and `resynthesis`, of `all` and of each group, and the log-mel's mean L1.

        Raises:
            FileNotFoundError: If the corpus is not there.
            UserError: If its replies have no tempo, or are fewer than the groups, or a rate is too large.
        """
        index = self.corpus / self.set_name / f"{self.split}.json"
        texts, originals = read_replies(index, self.corpus, self.max_examples)
        groups = self._groups(index, len(texts))
        spoken, mel_l1 = resynthesize(self.vocoder, originals)
        metrics = {"mel_l1": mel_l1}
        lines = ["| replies | tempo | speech | WER % (95 %) | at most % | |", "|---|---|---|---|---|---|"]
        missed = []
        for speech, waveforms in ((ORIGINAL, originals), (RESYNTHESIS, spoken)):
            heard = in_batches(self.recognizer.transcribe, waveforms)
            for name, (members, tempos) in groups.items():
                rates = word_error_rates([texts[one] for one in members], [heard[one] for one in members])
                metrics[f"{speech}/{name}/wer"] = rates.micro
                is_met = rates.micro <= self.limits[speech]
                limit = f"{100 * self.limits[speech]:.1f}"
                lines.append(
                    f"| {name}, {len(members)} | {tempos} | {speech} | {rates.in_percent()} | {limit} | "
                    f"{'met' if is_met else 'missed'} |"
                )
                if not is_met:
                    missed.append(f"{speech} of {name} {100 * rates.micro:.2f} % (at most {limit})")
        lines += [
            "",
            f"{len(texts)} replies of the {self.split} split; tempo is the drawn speed, pauses left out, as a share of "
            f"the voice's; WER by {rates.normalizer}, against the gold reply; log-mel L1 {mel_l1:.3f}",
        ]
        table = Path(output_dir) / "results.md"
        write_text(table, "\n".join(lines) + "\n")
        if missed and self.is_required:
            raise UserError(
                f"the judge mishears this corpus, so word errors would say little about a talker: {'; '.join(missed)}. "
                "Train judge or codec longer or wider, draw calmer speech, or set job.init_args.is_required=false to "
                f"go on all the same; the table is {table}"
            )
        return metrics

    def _groups(self, index: Path, num_replies: int) -> dict[str, tuple[Sequence[int], str]]:
        """Give the positions of the replies of each group, and the range of their tempos."""
        entries = read_entries(index)[:num_replies]
        if any(not isinstance(entry, dict) or TEMPO not in entry for entry in entries):
            raise UserError(f"{index}: its items have no {TEMPO!r}; give a corpus that was made with `expressive`")
        if num_replies < self.num_groups:
            raise UserError(f"{index}: {num_replies} replies for {self.num_groups} groups; give at least one for each")
        tempos = [entry[TEMPO] for entry in entries]
        (everyone,), groups = groups_by_tempo(tempos, 1), groups_by_tempo(tempos, self.num_groups)
        return {"all": everyone, **{f"group {number}": one for number, one in enumerate(groups, start=1)}}
