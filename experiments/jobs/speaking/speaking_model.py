"""A system that speaks, loaded from any run of a SpeechLLM or from an export."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.engine import artifacts
from experiments.engine.artifacts import load_trained
from experiments.engine.configuration.builder import build
from experiments.engine.configuration.checks import is_spec
from experiments.engine.configuration.errors import did_you_mean
from experiments.engine.exports import CONFIG_FILE, LOADER, from_export
from experiments.engine.runs import LATEST, latest_run, read_latest
from lightning_modules.adapters.adapter_set import TRAINED
from lightning_modules.errors import UserError
from lightning_modules.inference.pipelines import Pipeline, Sequential
from lightning_modules.inference.responder import Responder
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.talker.decoding.decoding import Decoding

COMPARISON = "comparison"
PRECISIONS = ("32-true", "bf16-mixed")

Transcriber = Callable[[Tensor], str]


@dataclass(frozen=True)
class SpeakingModel:
    """A trained system that answers queries.

    Attributes:
        llm: Thinker, talkers and vocoder, in evaluation mode.
        decodings: Ways to decode by name, with their numbers of steps: those of the run, or else each talker's default.
        source: The run directory or export that it was loaded from.
        config: The run's configuration; None for an export.
        transcribe: Writes what is heard in a query, ``(S,) float32`` at 16 kHz; None if nothing here learned to.
        transcribed_by: Which part that is, "thinker" or "recognizer"; empty if there is none.
        pipeline: Whether thinker, talker and vocoder work one after the other or at the same time.
    """

    llm: SpeechLLM
    decodings: dict[str, Decoding]
    source: Path
    config: dict[str, Any] | None = None
    transcribe: Transcriber | None = None
    transcribed_by: str = ""
    pipeline: Pipeline = field(default_factory=Sequential)

    @cached_property
    def responder(self) -> Responder:
        """The system that answers."""
        responder = self.llm.responder
        responder.pipeline = self.pipeline
        return responder

    @property
    def sample_rate_hz(self) -> int:
        """Samples per second of what it speaks."""
        assert self.llm.vocoder is not None
        return self.llm.vocoder.sample_rate

    def in_precision(self, precision: str | None = None) -> AbstractContextManager[object]:
        """Let passes within this context run in a precision.

        Args:
            precision: "32-true" or "bf16-mixed"; that of the run if None, "32-true" for an export.

        Raises:
            UserError: If it is unknown.
        """
        if precision is None:
            of_run = ((self.config or {}).get("trainer") or {}).get("precision")
            precision = of_run if of_run in PRECISIONS else PRECISIONS[0]
        if precision not in PRECISIONS:
            raise UserError(f"precision is {precision!r}; give one of {', '.join(PRECISIONS)}")
        is_lower = precision != PRECISIONS[0]
        return torch.autocast(self.llm.device.type, torch.bfloat16, enabled=is_lower, cache_enabled=False)

    def decoding(self, name: str) -> Decoding:
        """Find a decoding by its name, or make one: ``<talker>`` or ``<talker>_<steps per block>``.

        Raises:
            UserError: If there is none of this name, and no such talker or number of steps.
        """
        if name in self.decodings:
            return self.decodings[name]
        talkers = self.llm.talkers
        match = None if name in talkers else re.fullmatch(r"(.+)_(\d+)", name)
        talker, steps = (match[1], int(match[2])) if match else (name, None)
        if talker not in talkers:
            known = dict.fromkeys([*self.decodings, *talkers])
            raise UserError(f"decoding: there is no {name}; {did_you_mean(name, known)}, or write TALKER_STEPS")
        return self.responder.resolve(Decoding(talker, steps, adapter=own_adapter(self.llm)))


def load_speaking_model(
    path: str | Path,
    vocoder_run: str | Path | None = None,
    pipeline: Pipeline | None = None,
    compiled_talkers: bool = False,
) -> SpeakingModel:
    """Load a system that can speak.

    Args:
        path: A run of a SpeechLLM, an export or the run that made it, or the folder of an experiment's runs, of which
            the newest comparison is taken.
        vocoder_run: A run whose vocoder speaks, if the run has none, as a training has; the comparison beside it if
            None.
        pipeline: Whether thinker, talker and vocoder work one after the other or at the same time; the former if None.
        compiled_talkers: Let talkers speak with compiled blocks; see :class:`Responder`.

    Raises:
        FileNotFoundError: If a directory is none of these, or a run has no checkpoint.
        UserError: If it holds no talker, or there is no vocoder.
    """
    source = find_source(Path(path))
    is_export = (source / CONFIG_FILE).is_file()
    module = from_export(source) if is_export else load_trained(source)
    voice_of = find_source(Path(vocoder_run)) if vocoder_run else latest_run(source.parent, COMPARISON)
    llm = as_speaking(module, source, voice_of)
    llm.eval().requires_grad_(False)
    if compiled_talkers:
        llm.responder.compile_talkers()
    decodings = llm.decodings or llm.responder.resolve_all(
        {name: Decoding(name, adapter=own_adapter(llm)) for name in llm.talkers}
    )
    config = None if is_export else artifacts.read_config(source)
    by, transcribe = "", None
    if config is not None:
        by, transcribe = _find_transcriber(config, llm)
    return SpeakingModel(llm, decodings, source, config, transcribe, by, pipeline or Sequential())


def as_speaking(module: Any, source: Path, vocoder_run: Path | None) -> SpeechLLM:
    """Refuse a module that cannot speak, and let one without a vocoder speak with that of another run.

    Args:
        module: What was loaded.
        source: Where from, for errors.
        vocoder_run: The run whose vocoder speaks, if the module has none.

    Raises:
        FileNotFoundError: If the vocoder's run is missing or has no checkpoint.
        UserError: If it is no SpeechLLM or has no talker, or there is no vocoder or one of other tokens.
    """
    if not isinstance(module, SpeechLLM):
        raise UserError(f"{source} holds a {type(module).__name__}; give the run of a SpeechLLM, such as a comparison")
    if not module.talkers:
        raise UserError(f"{source} has no talker; give a run that holds thinker and talkers, as a comparison")
    if module.vocoder is None:
        if vocoder_run is None:
            raise UserError(
                f"{source} has no vocoder; give a comparison, or job.init_args.vocoder_run=RUN with the run of one"
            )
        module.vocoder = load_trained(vocoder_run, "vocoder")
        module.check_tokens()
    return module


def find_source(path: Path) -> Path:
    """Find the run directory or export that a path leads to.

    Args:
        path: As of :func:`load_speaking_model`.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = path.expanduser()
    if (path / "export" / CONFIG_FILE).is_file():
        return path / "export"
    if (path / "config.yaml").is_file() or (path / CONFIG_FILE).is_file():
        return path
    if not (path / LATEST).is_file():
        raise FileNotFoundError(
            f"{path} is no run directory, no export and no folder of runs; give one like "
            "runs/quickstart/comparison-1a2b3c4d, or run the quickstart first: python experiments/run.py"
        )
    stages = read_latest(path)
    names = [COMPARISON] if COMPARISON in stages else [name for name in stages if name.endswith(COMPARISON)]
    if not names:
        raise FileNotFoundError(f"{path} has no finished comparison; give one of its runs: {sorted(stages.values())}")
    return path / stages[names[-1]]


def own_adapter(llm: SpeechLLM) -> str | None:
    """Name the adapter that was trained in the run itself, None if none was."""
    return TRAINED if TRAINED in llm.adapters.names else None


def _find_transcriber(config: dict[str, Any], llm: SpeechLLM) -> tuple[str, Transcriber | None]:
    """Find what can write down a query: the thinker if it learned to, else the judge of the comparison."""
    if _thinker_transcribes(config):
        thinker = llm.thinker

        def by_thinker(query: Tensor) -> str:
            return thinker.transcribe(query[None], torch.tensor([len(query)], device=query.device))[0]

        return "thinker", by_thinker
    judge = ((config.get("callbacks") or {}).get("comparison") or {}).get("init_args", {}).get("recognizer")
    if not is_spec(judge):
        return "", None
    recognizer: SpeechRecognizer = build(judge, "callbacks.comparison.init_args.recognizer")
    recognizer.eval().requires_grad_(False)

    def by_recognizer(query: Tensor) -> str:
        return recognizer.transcribe([query])[0]

    return "recognizer", by_recognizer


def _thinker_transcribes(config: dict[str, Any]) -> bool:
    """Tell whether the thinker of a run was trained to transcribe, in this run or in the one that it comes from."""
    arguments = (config.get("module") or {}).get("init_args") or {}
    objective = arguments.get("thinker_objective") or {}
    if float((objective.get("init_args") or objective).get("transcript") or 0.0) > 0:
        return True
    thinker = arguments.get("thinker")
    if not (is_spec(thinker) and thinker["class_path"] == LOADER):
        return False
    return _thinker_transcribes(artifacts.read_config(Path(thinker["init_args"]["run"])))
