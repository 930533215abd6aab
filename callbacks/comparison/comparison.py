"""Compares every decoding on the test dialogues: quality, speed and sound, in one table."""

import json
from dataclasses import asdict
from pathlib import Path

import lightning as L
import soundfile
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.comparison.pictures import draw_mel, draw_pareto, draw_unmasking_order
from callbacks.comparison.rows import ORIGINAL, RESYNTHESIS, ComparisonRow, Record, format_table, summarize
from datamodules.batch import SpokenBatch
from lightning_modules.inference.spoken_reply import Decoding, SpokenReply
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.speech_recognizer import SpeechRecognizer

REFERENCE_RUN = "reference"


class Comparison(L.Callback):
    """Scores the spoken replies of a test and reports them.

    What was said is judged by a recognizer: word error rate of the speech against the *thinker's own* text, so that
    the talker does not pay for the thinker's mistakes. Two reference rows, the original audio and its codec
    resynthesis against the gold text, are the floor that the recognizer and the codec set. A silent reply is all wrong.

    Writes ``results.json``, ``summary.txt``, a Pareto plot and wav files into the trainer's root folder, and scalars
    (over the decoding steps a block), audio, pictures (mel, unmasking order) and transcripts into each talker's
    TensorBoard run.

    Args:
        recognizer: The judge.
        num_samples: Test dialogues, from the first on, whose audio is kept.
    """

    def __init__(self, recognizer: SpeechRecognizer, num_samples: int = 8) -> None:
        self.recognizer = recognizer.eval().requires_grad_(False)
        self.num_samples = num_samples
        self.records: list[Record] = []
        self.rows: list[ComparisonRow] = []
        self._samples: list[tuple[Record, Tensor]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what an earlier test left, and bring the judge to the module's device."""
        self.records, self.rows, self._samples = [], [], []
        self.recognizer.to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: SpeechLLM,  # type: ignore[override]
        outputs: list[dict[Decoding, SpokenReply]],  # type: ignore[override]
        batch: SpokenBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Transcribe the replies of a batch and keep what the table needs."""
        vocoder = pl_module.vocoder
        assert vocoder is not None and batch.units is not None and batch.unit_lengths is not None
        for row, (example_id, gold) in enumerate(zip(batch.ids, batch.reply_texts, strict=True)):
            units = batch.units[row, : int(batch.unit_lengths[row])]
            spoken: list[tuple[Record, Tensor]] = []
            if batch.reply is not None and batch.reply_lengths is not None:
                original = batch.reply[row, : int(batch.reply_lengths[row])].cpu()
                spoken.append((Record.of_reference(ORIGINAL, example_id, gold, units), original))
            resynthesis = vocoder(units).float().cpu()
            spoken.append((Record.of_reference(RESYNTHESIS, example_id, gold, units), resynthesis))
            for decoding, reply in outputs[row].items():
                record = Record.of_reply(decoding.talker, decoding.num_steps, example_id, gold, units, reply)
                spoken.append((record, reply.waveform))
            heard = self.recognizer.transcribe([waveform.to(pl_module.device) for _, waveform in spoken])
            for (record, _), transcript in zip(spoken, heard, strict=True):
                record.heard = transcript
                self.records.append(record)
            if len({sample.example_id for sample, _ in self._samples}) < self.num_samples:
                self._samples += spoken

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: SpeechLLM) -> None:  # type: ignore[override]
        """Sum up, and write everything that people look at or listen to."""
        self.records = _gather(self.records)
        if not trainer.is_global_zero or not self.records:
            return
        assert pl_module.vocoder is not None
        token_rate_hz = pl_module.vocoder.sample_rate / pl_module.vocoder.samples_per_token
        self.rows = summarize(self.records, token_rate_hz)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps([asdict(row) for row in self.rows], indent=2) + "\n")
        transcripts = [record.as_transcript() for record in self.records]
        (folder / "transcripts.json").write_text(json.dumps(transcripts, indent=1) + "\n")
        table = format_table(self.rows)
        (folder / "summary.txt").write_text(table + "\n")
        figure = draw_pareto(self.rows)
        figure.savefig(folder / "pareto.png", dpi=120)
        for row in self.rows:
            scalars = row.as_scalars()
            pl_module.log_scalars(row.talker, scalars, row.steps or 0)
        self._write_samples(trainer, pl_module, folder / "audio")

    def _write_samples(self, trainer: L.Trainer, pl_module: SpeechLLM, folder: Path) -> None:
        assert pl_module.vocoder is not None
        sample_rate = pl_module.vocoder.sample_rate
        writers = _open_writers(trainer, {record.talker for record, _ in self._samples})
        for record, waveform in self._samples:
            if not waveform.numel():
                continue
            path = folder / record.example_id / f"{record.label}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, waveform.clamp(-1, 1).numpy(), sample_rate)
            writer = writers.get(record.talker) or writers.get(REFERENCE_RUN)
            if writer is None:
                continue
            step = record.steps or 0
            tag = record.example_id if record.steps else f"{record.example_id}/{record.label}"
            writer.add_audio(f"test/{tag}", waveform.clamp(-1, 1), step, sample_rate)
            text = f"**said** {record.text}\n\n**heard** {record.heard}\n\n**gold** {record.gold}"
            writer.add_text(f"test/{tag}", text, step)
            writer.add_figure(f"test/{tag}", draw_mel(waveform, sample_rate, record.heard), step)
        self._draw_orders(pl_module, writers)
        for writer in writers.values():
            writer.close()

    def _draw_orders(self, pl_module: SpeechLLM, writers: dict[str, SummaryWriter]) -> None:
        """Draw in which step each token was revealed, for talkers that reveal several at once."""
        orders: dict[tuple[str, str], dict[int, Tensor]] = {}
        for record, _ in self._samples:
            if record.reply is not None and record.steps is not None and len(record.reply.order):
                orders.setdefault((record.talker, record.example_id), {})[record.steps] = record.reply.order
        texts = {record.example_id: record.text for record, _ in self._samples if record.reply is not None}
        for (talker, example_id), by_steps in orders.items():
            block_size = pl_module.talkers[talker].block_size
            assert isinstance(block_size, int)
            if talker in writers:
                figure = draw_unmasking_order(by_steps, block_size, texts[example_id])
                writers[talker].add_figure(f"unmasking/{example_id}", figure)


def _open_writers(trainer: L.Trainer, talkers: set[str]) -> dict[str, SummaryWriter]:
    """A writer into each talker's TensorBoard run, and one for the references beside them."""
    folders = {logger.name: Path(logger.log_dir) for logger in trainer.loggers if logger.name and logger.log_dir}
    found = {name: folder for name, folder in folders.items() if name in talkers}
    if found:
        found[REFERENCE_RUN] = next(iter(found.values())).parent / REFERENCE_RUN
    return {name: SummaryWriter(folder) for name, folder in found.items()}


def _gather(records: list[Record]) -> list[Record]:
    """Collect the records of all ranks, each example of a decoding once."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gathered: list[list[Record]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(gathered, records)
        records = [record for part in gathered for record in part]
    return list({(record.label, record.example_id): record for record in records}.values())
