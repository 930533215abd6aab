"""A job that asks a trained system one query, and writes and prints what it answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from datamodules.batch import SAMPLE_RATE_HZ
from datamodules.formats.atomic_files import write_json, write_text
from datamodules.synthetic.espeak import Voice
from experiments.jobs.speaking.queries import prepared_query, read_query, speak_query
from experiments.jobs.speaking.speaking_model import load_speaking_model
from experiments.jobs.speaking.timeline import BlockTimes, lay_out, longest_gap_s, stream_with_times
from lightning_modules.errors import UserError
from lightning_modules.inference.pipelines import Pipeline
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.talker.decoding.decoding import Decoding


class Speak:
    """Answers one query by voice.

    Writes ``query.wav`` as the thinker heard it, ``reply.wav``, ``timeline.json`` and ``summary.txt``.

    Args:
        run: A run with talkers, or an export; see :func:`load_speaking_model`.
        query: A file of speech of 0.2 to 30 s; any rate and number of channels.
        text: A query that is spoken by eSpeak NG instead.
        decoding: Name of a decoding of the run, or ``<talker>`` or ``<talker>_<steps per block>``.
        voice: Who speaks the text.
        vocoder_run: The run whose vocoder speaks, if ``run`` has none; the comparison beside it if None.
        precision: Precision of passes; the one that the run had if None.
        pipeline: Whether thinker, talker and vocoder work one after the other or at the same time; the former if None.
        compiled_talkers: Let talkers speak with compiled blocks, or on a GPU captured ones; see :class:`Responder`.

    Raises:
        UserError: If not just one of query and text is given.
    """

    def __init__(
        self,
        run: Path,
        query: Path | None = None,
        text: str | None = None,
        decoding: str = "mdm_4",
        voice: Voice | None = None,
        vocoder_run: Path | None = None,
        precision: str | None = None,
        pipeline: Pipeline | None = None,
        compiled_talkers: bool = False,
    ) -> None:
        if (query is None) == (text is None):
            given = "there is no query" if text is None else "there are two queries, a file and a text"
            raise UserError(f'{given}; give one, by query=FILE.wav or by text="WORDS"')
        self.from_run, self.query, self.text, self.decoding = Path(run), query, text, decoding
        self.voice, self.vocoder_run = voice or Voice(), vocoder_run
        self.precision, self.pipeline, self.compiled_talkers = precision, pipeline, compiled_talkers

    @torch.no_grad()
    def run(self, output_dir: Path) -> dict[str, Any]:
        """Answer the query.

        Args:
            output_dir: The run directory.

        Returns:
            Durations, first-chunk latency and real-time factor.

        Raises:
            FileNotFoundError: If the run or the query is missing.
            UserError: If the query cannot be used, the run cannot speak, or there is no such decoding.
        """
        folder = Path(output_dir)
        query, source = self._hear()
        model = load_speaking_model(self.from_run, self.vocoder_run, self.pipeline, self.compiled_talkers)
        decoding, responder = model.decoding(self.decoding), model.responder
        query = query.to(model.llm.device)
        reply, blocks = SpokenReply(), []
        with model.in_precision(self.precision):
            responder.warm_up({self.decoding: decoding}, model.llm.device)
            heard = model.transcribe(query) if model.transcribe is not None else None
            for _, times in stream_with_times(
                responder, responder.write_text(query, decoding.adapter), decoding, reply
            ):
                blocks.append(times)
        rate = responder.vocoder.sample_rate
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "query.wav", query.cpu().numpy(), SAMPLE_RATE_HZ)
        soundfile.write(folder / "reply.wav", reply.waveform.clamp(-1, 1).numpy(), rate)
        reply_s = len(reply.waveform) / rate
        metrics = {
            "query_s": len(query) / SAMPLE_RATE_HZ,
            "reply_s": reply_s,
            "first_chunk_ms": reply.first_chunk_times.as_milliseconds()["total"],
            "rtf": reply.times.talker_s / reply_s if reply_s else None,
            "rtf_of_all": reply.timeline.end_s / reply_s if reply_s else None,
            "longest_gap_ms": 1000 * longest_gap_s(blocks),
        }
        record = {"heard": heard, "text": reply.text, "decoding": self.decoding, "blocks": [*map(asdict, blocks)]}
        record["spans"] = [*map(asdict, reply.timeline.spans)]
        write_json(folder / "timeline.json", {**record, **metrics})
        write_text(folder / "summary.txt", self._summary(folder, source, heard, decoding, reply, blocks, metrics))
        return metrics

    def _hear(self) -> tuple[Tensor, str]:
        if self.query is not None:
            query, source = read_query(self.query)
            return torch.from_numpy(prepared_query(query.numpy())), f"{self.query}, {source}"
        assert self.text is not None
        voice = f"{self.voice.name}, {self.voice.rate_wpm} words per minute"
        return speak_query(self.text, self.voice), f"{self.text!r}, spoken by eSpeak NG {voice}"

    def _summary(
        self,
        folder: Path,
        source: str,
        heard: str | None,
        decoding: Decoding,
        reply: SpokenReply,
        blocks: list[BlockTimes],
        metrics: dict[str, Any],
    ) -> str:
        first = reply.first_chunk_times.as_milliseconds()
        total = first.pop("total")
        parts = " + ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in first.items())
        gap = metrics["longest_gap_ms"]
        rule = f", {decoding.rule}" if decoding.rule else ""
        ended = "" if reply.ended else "; cut off, no end of speech came"
        speech = f"{metrics['reply_s']:.2f} s, {len(reply.speech_tokens)} tokens in {len(blocks)} blocks{ended}"
        lines = {
            "query": f"{source}; {metrics['query_s']:.2f} s at {SAMPLE_RATE_HZ:,} Hz in {folder / 'query.wav'}",
            "heard": heard,
            "reply": reply.text,
            "speech": f"{speech}, in {folder / 'reply.wav'}",
            "decoding": f"{self.decoding} ({decoding.talker}, {decoding.num_steps} steps per block{rule})",
            "first sound": f"{total:.0f} ms after the query = {parts}",
            "playback": "without a gap" if gap <= 0 else f"waits {gap:.0f} ms at most between two blocks",
        }
        head = [f"{name:<12}{text or '-'}" for name, text in lines.items() if text is not None]
        return "\n".join([*head, "", lay_out(blocks)]) + "\n"
