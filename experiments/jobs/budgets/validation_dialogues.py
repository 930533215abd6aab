"""Validation dialogues whose texts are written once, and spoken by many talkers."""

from collections.abc import Iterable

import numpy as np
import torch

from callbacks.comparison.comparison import at_rate
from datamodules.batch import SpokenBatch
from lightning_modules.evaluation.word_error_rate import count_word_errors
from lightning_modules.inference.spoken_reply import ThinkerText
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.speech_recognizer import SpeechRecognizer


class ValidationDialogues:
    """Lets talkers speak what the thinker answers to queries, a batch at a time, and counts the judge's word errors.

    Args:
        module: Thinker, talkers, vocoder and decodings; weights of talkers may change between two counts.
        recognizer: The judge.
        batches: Queries.
        max_dialogues: How many are asked, from the first on; all if None.
    """

    def __init__(
        self,
        module: SpeechLLM,
        recognizer: SpeechRecognizer,
        batches: Iterable[SpokenBatch],
        max_dialogues: int | None = None,
    ) -> None:
        self.module, self.recognizer = module, recognizer
        self.ids: list[str] = []
        self._texts: list[list[ThinkerText]] = []
        for batch in batches:
            num_left = len(batch.ids) if max_dialogues is None else max_dialogues - len(self.ids)
            if num_left <= 0:
                break
            queries = list(batch.queries())[:num_left]
            self.ids += batch.ids[:num_left]
            self._texts.append([module.responder.write_text(query, None, history) for query, history in queries])

    @torch.no_grad()
    def count_errors(self, decoding: str) -> tuple[np.ndarray, np.ndarray]:
        """Count the errors of one decoding against the thinker's own text.

        Args:
            decoding: Its name.

        Returns:
            Word errors and words of each dialogue, ``(N,) int64``.
        """
        module, rate_hz = self.module, self.recognizer.sample_rate
        assert module.vocoder is not None
        pairs = []
        for texts in self._texts:
            replies = module.responder.speak(texts, module.decodings[decoding])
            audio = [at_rate(one.waveform, module.vocoder.sample_rate, rate_hz).to(module.device) for one in replies]
            pairs += [(one.text, heard) for one, heard in zip(replies, self.recognizer.transcribe(audio), strict=True)]
        return count_word_errors(pairs)
