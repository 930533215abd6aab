"""A job that measures what a training step of each talker costs, and which part of it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from callbacks.runtime.training_cost import peak_memory_gb
from datamodules.batch import SpokenBatch, SpokenExample, collate
from datamodules.formats.atomic_files import write_text
from experiments.engine.runs import write_json
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive
from lightning_modules.talker.base import Talker
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from lightning_modules.training.optimization import BETAS

SAMPLE_RATE_HZ = 16_000
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OF_ALL, OF_TALKER = ("data", "encoder", "thinker"), ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class FrozenThinker:
    """What a stage-2 step runs before its talkers; left out where text states are read instead.

    Attributes:
        speech_encoder: Maps waveforms to frames.
        adaptor: Maps frames to embeddings.
        language_model: Reads them and the reply.
    """

    speech_encoder: SpeechEncoder
    adaptor: Adaptor
    language_model: LanguageModel


class TrainingBenchmark:
    """Takes training steps of talkers in turn on batches drawn at random, and times the parts of each.

    A step draws replies of half to all of ``num_units`` speech tokens, collates and moves them ("data"; reading from
    disk is not in it, the benchmark of streams measures that), runs a frozen speech encoder and thinker if there are
    any, then forward, backward, and clipping with AdamW of one talker. Before and after each part the device is waited
    for. Rounds go through the talkers in turn, so that a slow minute of the machine slows all of them. It runs on a GPU
    where there is one.

    Args:
        talkers: Talkers by name.
        thinker: See :class:`FrozenThinker`.
        shares_backbone: Let all talkers have the first one's backbone and one optimizer, so that large ones fit into
            memory together; no time depends on the weights.
        precision: "float32", or "bfloat16" for weights, gradients and optimizer state.
        autocast: Compute in bfloat16, with weights as they are.
        num_rows: Replies of a batch.
        num_units: Speech tokens of the longest reply.
        num_text_tokens: Text tokens of each reply.
        query_s: Length of each query.
        num_rounds: Steps of each talker that are timed, after one that is not.
        seed: Seeds batches and masks.

    Raises:
        UserError: If there are no talkers, a number is out of range, or the precision is unknown.
    """

    def __init__(
        self,
        talkers: dict[str, Talker],
        thinker: FrozenThinker | None = None,
        shares_backbone: bool = False,
        precision: str = "float32",
        autocast: bool = False,
        num_rows: int = 16,
        num_units: int = 80,
        num_text_tokens: int = 16,
        query_s: float = 2.0,
        num_rounds: int = 15,
        seed: int = 0,
    ) -> None:
        require_at_least(1, num_rows=num_rows, num_text_tokens=num_text_tokens, num_rounds=num_rounds)
        require_at_least(2, num_units=num_units)
        require_at_least(0, seed=seed)
        require_positive(query_s=query_s)
        if not talkers:
            raise UserError("talkers: give at least one, by name")
        if precision not in PRECISIONS:
            raise UserError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
        self.talkers, self.thinker = nn.ModuleDict(talkers), thinker
        if shares_backbone:
            first = next(iter(talkers.values()))
            for name, talker in talkers.items():
                if talker.backbone.width != first.backbone.width:
                    raise UserError(f"talkers.{name} has a backbone of another width; set shares_backbone to false")
                talker.backbone = first.backbone
        self.dtype, self.autocast = PRECISIONS[precision], autocast
        self.num_rows, self.num_units, self.num_text_tokens = num_rows, num_units, num_text_tokens
        self.query_s, self.num_rounds, self.seed = query_s, num_rounds, seed
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `results.md` and `measured.json`, and print the former.

        Args:
            output_dir: The run directory.

        Returns:
            The median of the tokens per second of each talker.
        """
        self.talkers.to(self.device, self.dtype).train()
        optimizer = torch.optim.AdamW(self.talkers.parameters(), lr=1e-5, betas=BETAS, fused=True)
        seconds: dict[str, list[dict[str, float]]] = {name: [] for name in self.talkers}
        num_tokens: dict[str, list[int]] = {name: [] for name in self.talkers}
        names = list(self.talkers)
        for turn in range(self.num_rounds + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                taken, count = self._step(name, optimizer, turn)
                if turn > 0:
                    seconds[name].append(taken)
                    num_tokens[name].append(count)
        measured = {name: _summary(seconds[name], num_tokens[name]) for name in names}
        machine = torch.cuda.get_device_name() if self.device.type == "cuda" else f"{torch.get_num_threads()} threads"
        about = {
            "device": f"{self.device.type}, {machine}",
            "precision": str(self.dtype).removeprefix("torch.") + (", autocast to bfloat16" if self.autocast else ""),
            "batch": f"{self.num_rows} replies of {self.num_units // 2} to {self.num_units} speech tokens",
            "peak_memory_gb": peak_memory_gb(self.device),
        }
        write_json(Path(output_dir) / "measured.json", {"about": about, "talkers": measured})
        table = _table(about, measured)
        write_text(Path(output_dir) / "results.md", table)
        print(table)
        return {f"{name}/tokens_per_s": figures["tokens_per_s"][0] for name, figures in measured.items()}

    def _step(self, name: str, optimizer: torch.optim.Optimizer, turn: int) -> tuple[dict[str, float], int]:
        """Take one step; give the seconds of each part, and the speech tokens."""
        talker = self.talkers[name]
        assert isinstance(talker, Talker)
        rng, seconds = np.random.default_rng([self.seed, turn]), {}

        def timed(part: str, action: Callable[[], Any]) -> Any:
            self._wait()
            start = time.perf_counter()
            result = action()
            self._wait()
            seconds[part] = time.perf_counter() - start
            return result

        examples = [self._draw(rng, talker) for _ in range(self.num_rows)]
        batch = timed("data", lambda: collate(examples).to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            text = self._text_of(batch, talker, timed)
            generator = torch.Generator().manual_seed(turn)
            output = timed("forward", lambda: talker(text, batch.units, batch.unit_lengths, generator))
        timed("backward", output.loss.backward)
        timed("optimizer", lambda: _update(talker, optimizer))
        optimizer.zero_grad(set_to_none=True)
        return seconds, int(batch.unit_lengths.sum())

    def _draw(self, rng: np.random.Generator, talker: Talker) -> SpokenExample:
        units = rng.integers(talker.vocabulary.num_codes, size=rng.integers(self.num_units // 2, self.num_units + 1))
        query = rng.normal(0.0, 0.1, round(self.query_s * SAMPLE_RATE_HZ)).astype(np.float32)
        return SpokenExample("drawn", "drawn", torch.from_numpy(query), torch.from_numpy(units))

    @torch.no_grad()
    def _text_of(self, batch: SpokenBatch, talker: Talker, timed: Callable[..., Any]) -> TextStates:
        """Let the thinker read replies of text tokens drawn at random; without one, draw its states."""
        shape = self.num_rows, self.num_text_tokens
        lengths = torch.full((self.num_rows,), self.num_text_tokens)
        thinker = self.thinker
        if thinker is None:
            sizes = (len(norm.weight) for norm in (talker.anchors.hidden_norm, talker.anchors.embedding_norm))
            return TextStates(*(torch.randn(*shape, size, device=self.device) for size in sizes), lengths)
        language_model = thinker.language_model.to(self.device).eval()
        encoder, adaptor = thinker.speech_encoder.to(self.device).eval(), thinker.adaptor.to(self.device).eval()
        frames, num_frames = timed("encoder", lambda: encoder(batch.query, batch.query_lengths))

        def think() -> tuple[Tensor, Tensor]:
            audio, _ = adaptor(frames, num_frames)
            embedding = language_model.embed(torch.zeros(shape, dtype=torch.int64, device=self.device))
            hidden = language_model(torch.cat([audio.to(embedding.dtype), embedding], dim=1))
            return hidden[:, -self.num_text_tokens :], embedding

        return TextStates(*timed("thinker", think), lengths)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _update(talker: Talker, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_([one for one in talker.parameters() if one.grad is not None], 1.0)
    optimizer.step()


def _summary(seconds: list[dict[str, float]], num_tokens: list[int]) -> dict[str, Any]:
    """Give medians with 10th and 90th percentiles: milliseconds of each part, and tokens per second of the talker."""
    talker_s = [sum(one[part] for part in OF_TALKER) for one in seconds]
    rates = [count / taken for count, taken in zip(num_tokens, talker_s, strict=True)]
    parts = {
        part: _spread([1000 * one[part] for one in seconds]) for part in (*OF_ALL, *OF_TALKER) if part in seconds[0]
    }
    step = _spread([1000 * sum(one.values()) for one in seconds])
    return {"tokens_per_s": _spread(rates), "step_ms": step, "parts_ms": parts}


def _spread(values: list[float]) -> tuple[float, float, float]:
    low, high = np.percentile(values, [10, 90])
    return statistics.median(values), float(low), float(high)


def _table(about: dict[str, Any], measured: dict[str, dict[str, Any]]) -> str:
    parts = list(next(iter(measured.values()))["parts_ms"])
    head = f"| talker | tokens/s of the talker | step | {' | '.join(parts)} |"
    rows = []
    for name, figures in measured.items():
        median, low, high = figures["tokens_per_s"]
        times = [_ms(figures["step_ms"]), *(_ms(figures["parts_ms"][part]) for part in parts)]
        rows.append(f"| {name} | {median:,.1f} ({low:,.1f} to {high:,.1f}) | {' | '.join(times)} |")
    about = {**about, "peak_memory_gb": f"{about['peak_memory_gb']:.2f} GB at most"}
    intro = "; ".join(map(str, about.values())) + ". Medians (10th to 90th percentile), ms."
    return "\n".join([intro, "", head, "|" + "---|" * (len(parts) + 3), *rows]) + "\n"


def _ms(spread: tuple[float, float, float]) -> str:
    digits = 1 if spread[0] < 100 else 0
    median, low, high = (f"{value:,.{digits}f}" for value in spread)
    return f"{median} ({low} to {high})"
