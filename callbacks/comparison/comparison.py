"""Compares every decoding on the test dialogues: quality, speed and sound, in one table."""

from dataclasses import asdict
from pathlib import Path

import lightning as L
import soxr
import torch
from torch import Tensor

from callbacks.comparison.page.page import write_page
from callbacks.comparison.page.system import describe_system
from callbacks.comparison.pictures import draw_pareto
from callbacks.comparison.query_kinds import QueryKinds
from callbacks.comparison.rows import ORIGINAL, RESYNTHESIS, ComparisonRow, Record, format_table, summarize
from callbacks.comparison.samples import Dialogue, Sample, write_samples
from callbacks.comparison.selection import Selection
from datamodules.batch import SAMPLE_RATE_HZ, SpokenBatch
from datamodules.formats.atomic_files import write_json, write_text
from lightning_modules.evaluation.sound.naturalness import NaturalnessJudge
from lightning_modules.evaluation.sound.sound_quality import SoundMeter
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.training.reduction import gather_over_ranks
from lightning_modules.voice_classifier import VoiceClassifier


class Comparison(L.Callback):
    """Scores the spoken replies of a test and reports them.

    What was said is judged by a recognizer: word error rate of the speech against the *thinker's own* text, so that
    the talker does not pay for the thinker's mistakes, and against the gold reply, so that a name that the thinker
    misspells and the talker says as it is spelled is wrong. Two reference rows, the original audio and its codec
    resynthesis against the gold text, are the floor that the recognizer and the codec set. A silent reply is all wrong.
    Whose voice is heard is judged by a classifier, if there is one, and told as shares of all replies.

    Writes ``comparison.html``, which holds tables, plots and audio for people and opens without network, and what it is
    made from: ``results.json``, ``transcripts.json``, ``samples.json``, ``system.json`` and wav files; besides
    ``summary.txt``, a Pareto plot, and scalars (over the decoding steps per block), audio, pictures (mel, unmasking
    order) and transcripts in a TensorBoard run for each talker and rule. All into the trainer's root folder.

    Args:
        recognizer: The judge.
        num_samples: Test dialogues, drawn at random, whose audio is kept.
        voice_classifier: The judge of voices; None asks nobody.
        num_timed: Test dialogues, from the first on, that are answered one by one and timed, on each device; the
            others are answered side by side, a batch at a time, which gives the same replies in less time. None times
            all.
        num_worst: Further dialogues whose audio is kept: those with the most word errors over all decodings.
        query_kinds: Tells the kinds of queries apart; None takes them all for one.
        utmos_file: TorchScript file of UTMOS, which predicts how natural listeners find the speech; None asks nobody.

    Raises:
        UserError: If a number of dialogues is negative, or nothing is timed.
    """

    def __init__(
        self,
        recognizer: SpeechRecognizer,
        num_samples: int = 8,
        voice_classifier: VoiceClassifier | None = None,
        num_timed: int | None = None,
        num_worst: int = 0,
        query_kinds: QueryKinds | None = None,
        utmos_file: str | None = None,
    ) -> None:
        require_at_least(0, num_samples=num_samples, num_worst=num_worst)
        require_at_least(1, num_timed=num_timed)
        self.num_timed = num_timed
        self.recognizer = recognizer.eval().requires_grad_(False)
        self.voice_classifier = None if voice_classifier is None else voice_classifier.eval().requires_grad_(False)
        self.naturalness_judge = None if utmos_file is None else NaturalnessJudge(utmos_file)
        self.sound_meter, self.query_kinds = SoundMeter(), query_kinds
        self.records: list[Record] = []
        self.rows: list[ComparisonRow] = []
        self._selection: Selection[Dialogue] = Selection(num_samples, num_worst)

    def on_test_start(self, trainer: L.Trainer, pl_module: SpeechLLM) -> None:  # type: ignore[override]
        """Forget what an earlier test left, and bring the judges to the module's device."""
        self.records, self.rows = [], []
        self._selection.clear()
        pl_module.num_timed = self.num_timed
        if self.naturalness_judge is not None:
            self.naturalness_judge.load(pl_module.device)
        self.recognizer.to(pl_module.device)
        if self.voice_classifier is not None:
            self.voice_classifier.to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: SpeechLLM,  # type: ignore[override]
        outputs: list[dict[str, SpokenReply]],  # type: ignore[override]
        batch: SpokenBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Transcribe the replies of a batch and keep what the table needs."""
        vocoder = pl_module.vocoder
        assert vocoder is not None and batch.units is not None and batch.unit_lengths is not None
        token_rate_hz = vocoder.frame_rate_hz
        queries, resyntheses = batch.queries(), resynthesis_rows(pl_module)
        for row, (example_id, gold) in enumerate(zip(batch.ids, batch.reply_texts, strict=True)):
            units = batch.units[row, : int(batch.unit_lengths[row])]
            spoken: list[Sample] = []
            if batch.reply is not None and batch.reply_lengths is not None:
                original = batch.reply[row, : int(batch.reply_lengths[row])].cpu()
                reference = Record.of_reference(ORIGINAL, example_id, gold, units, token_rate_hz)
                spoken.append(Sample(reference, original, SAMPLE_RATE_HZ))
            for name, adapter in resyntheses.items():
                pl_module.adapters.select(adapter)
                resynthesis = vocoder(units).float().cpu()
                reference = Record.of_reference(name, example_id, gold, units, token_rate_hz)
                spoken.append(Sample(reference, resynthesis, vocoder.sample_rate))
            for name, reply in outputs[row].items():
                decoding = pl_module.decodings[name]
                record = Record.of_reply(name, decoding, example_id, gold, units, reply, token_rate_hz)
                spoken.append(Sample(record, reply.waveform, vocoder.sample_rate))
            self._judge(spoken, pl_module)
            transcript = None if batch.transcripts is None else batch.transcripts[row]
            kind = None if self.query_kinds is None else self.query_kinds(gold)
            for sample in spoken:
                sample.record.kind = kind
            self.records += [sample.record for sample in spoken]
            dialogue = Dialogue(example_id, gold, transcript, queries[row][0].float().cpu(), spoken)
            self._selection.offer(example_id, dialogue.word_error_rate, dialogue)

    def _judge(self, spoken: list[Sample], pl_module: SpeechLLM) -> None:
        """Write down what is heard, in whose voice, and how it sounds."""
        assert pl_module.vocoder is not None

        def audio(rate_hz: int) -> list[Tensor]:
            return [at_rate(one.waveform, one.sample_rate, rate_hz).to(pl_module.device) for one in spoken]

        for sample, heard in zip(spoken, self.recognizer.transcribe(audio(self.recognizer.sample_rate)), strict=True):
            sample.record.heard = heard
        if self.voice_classifier is not None:
            voices = self.voice_classifier.classify(audio(self.voice_classifier.sample_rate))
            for sample, voice in zip(spoken, voices, strict=True):
                sample.record.voice = voice
        # References have no chunks: they are measured where those of the first talker would meet, as a control.
        first = next(iter(pl_module.talkers))
        for sample in spoken:
            talker = pl_module.talkers[first if sample.record.decoding is None else sample.record.decoding.talker]
            chunk_s = int(talker.block_size) / pl_module.vocoder.frame_rate_hz  # type: ignore[arg-type]
            heard = at_rate(sample.waveform, sample.sample_rate, SAMPLE_RATE_HZ)
            sample.record.sound = self.sound_meter(heard, chunk_s)
            if self.naturalness_judge is not None:
                sample.record.naturalness = self.naturalness_judge(heard)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: SpeechLLM) -> None:  # type: ignore[override]
        """Sum up, and write everything that people look at or listen to."""
        gathered = gather_over_ranks(self.records, trainer.world_size)
        self._selection.merge(gather_over_ranks(self._selection, trainer.world_size))
        # Each example of a decoding once: several devices may share out a test unevenly.
        self.records = list({(one.name, one.example_id): one for part in gathered for one in part}.values())
        if not trainer.is_global_zero or not self.records:
            return
        assert pl_module.vocoder is not None
        voices = () if self.voice_classifier is None else self.voice_classifier.voices
        self.rows = summarize(self.records, pl_module.vocoder.frame_rate_hz, voices)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "results.json", [asdict(row) for row in self.rows])
        write_json(folder / "transcripts.json", [record.as_transcript() for record in self.records])
        draw_pareto(self.rows).savefig(folder / "pareto.png", dpi=120)
        block_sizes = {name: int(talker.block_size) for name, talker in pl_module.talkers.items()}  # type: ignore[arg-type]
        write_samples(self._selection, self.rows, block_sizes, pl_module.vocoder.frame_rate_hz, folder)
        write_json(folder / "system.json", describe_system(pl_module, trainer))
        page = write_page([folder], folder / "comparison.html")
        write_text(folder / "summary.txt", f"{format_table(self.rows)}\n{how_to_look(page)}\n")


def resynthesis_rows(pl_module: SpeechLLM) -> dict[str, str | None]:
    """Name the rows of resynthesis, each with its adapter: the base's, and one per adapter that changes the vocoder."""
    adapters = pl_module.adapters
    changed = [name for name in adapters.names if any(one.startswith("vocoder.") for one in adapters.parts_of(name))]
    return {RESYNTHESIS: None, **{f"{RESYNTHESIS} by {name}": name for name in changed}}


def how_to_look(page: Path) -> str:
    """Say in one line where the page is, and what to do next."""
    speak = f"python experiments/run.py live inputs.run={page.parent}"
    return f"to listen and look, open {page} in a browser; to speak with these talkers: {speak}"


def at_rate(waveform: Tensor, rate_hz: int, wanted_hz: int) -> Tensor:
    """Resample audio for a listener of another rate, a recognizer of 16 kHz behind a vocoder of 24 kHz, say.

    Args:
        waveform: ``(S,) float32`` on the CPU.
        rate_hz: Its rate.
        wanted_hz: The listener's.

    Returns:
        ``(S * wanted_hz / rate_hz,) float32``; the waveform itself if the rates are equal.
    """
    if rate_hz == wanted_hz or not waveform.numel():
        return waveform
    return torch.from_numpy(soxr.resample(waveform.numpy(), rate_hz, wanted_hz))
