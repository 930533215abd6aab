"""A job that measures what a training step of each talker costs, and which part of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from callbacks.runtime.step_profile import PREFIX, REST, split_of
from callbacks.runtime.training_cost import peak_memory_gb
from datamodules.batch import SpokenBatch, SpokenExample, collate
from datamodules.formats.atomic_files import write_text
from experiments.engine.runs import write_json
from experiments.jobs.decoding.machine import find_device, wait_for
from experiments.jobs.decoding.statistics import Spread, spread_of
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.log_mel import SAMPLE_RATE_HZ
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from lightning_modules.training.optimization import BETAS

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_PROFILED = 5  # steps of each talker; what a profiler records of each takes longer to read than the step
PARTS = ("data", "encoder", "thinker", "forward", "backward", "optimizer", REST)


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
    """Takes training steps of talkers in turn on batches drawn at random, times them, and profiles the parts of others.

    A step draws replies of half to all of ``num_units`` speech tokens, collates and moves them ("data"; reading from
    disk is not in it, the benchmark of streams measures that), runs a frozen speech encoder and thinker if there are
    any, then forward, backward, and clipping with AdamW of one talker. Rounds go through the talkers in turn, so that a
    slow minute of the machine slows all of them. Steps are timed as they are; in the first five rounds another one is
    taken under PyTorch's profiler, which slows it down and only tells the shares of its parts, behind each of which the
    device is waited for. It runs on a GPU where there is one.

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
        num_rounds: Steps of each talker that are timed, after those that are not.
        num_warmups: Steps of each talker before them.
        compares_flex_attention: Take each talker twice, with dense masks and with flex attention (see
            :class:`FlexAttention`), named "NAME, flex". That is for a GPU; without one a line says so, and nothing is
            measured.
        seed: Seeds batches and masks.

    Raises:
        UserError: If there are no talkers, a number is out of range, or the precision is unknown.
    """

    def __init__(
        self,
        talkers: dict[str, AnchoredTalker],
        thinker: FrozenThinker | None = None,
        shares_backbone: bool = False,
        precision: str = "float32",
        autocast: bool = False,
        num_rows: int = 16,
        num_units: int = 80,
        num_text_tokens: int = 16,
        query_s: float = 2.0,
        num_rounds: int = 15,
        num_warmups: int = 1,
        compares_flex_attention: bool = False,
        seed: int = 0,
    ) -> None:
        require_at_least(1, num_rows=num_rows, num_text_tokens=num_text_tokens, num_rounds=num_rounds)
        require_at_least(1, num_warmups=num_warmups)
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
        self.query_s, self.num_rounds, self.num_warmups, self.seed = query_s, num_rounds, num_warmups, seed
        self.compares_flex_attention = compares_flex_attention
        self.device = find_device()

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write `results.md` and `measured.json`, and print the former.

        Args:
            output_dir: The run directory.

        Returns:
            The median of the tokens per second of each talker.
        """
        if self.compares_flex_attention and self.device.type != "cuda":
            print("no GPU: flex attention is not measured")
            return {}
        self.talkers.to(self.device, self.dtype).train()
        optimizer = torch.optim.AdamW(self.talkers.parameters(), lr=1e-5, betas=BETAS, fused=True)
        taken = {variant.label: variant for variant in self._variants()}
        found: dict[str, list[_Step]] = {label: [] for label in taken}
        shares: dict[str, list[dict[str, float]]] = {label: [] for label in taken}
        labels = list(taken)
        for turn in range(self.num_warmups + self.num_rounds):
            for label in labels[turn % len(labels) :] + labels[: turn % len(labels)]:
                step = self._step(taken[label], optimizer, turn)
                if turn >= self.num_warmups:
                    found[label].append(step)
                if 0 <= turn - self.num_warmups < MAX_PROFILED:
                    shares[label].append(self._profiled_shares(taken[label], optimizer, turn))
        measured = {label: _summary(found[label], shares[label]) for label in labels}
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

    def _variants(self) -> "Iterator[_Variant]":
        for name, talker in self.talkers.items():
            assert isinstance(talker, AnchoredTalker)
            yield _Variant(name, talker, talker.backbone.flex_attention)
            if self.compares_flex_attention:
                yield _Variant(f"{name}, flex", talker, True)

    def _step(self, variant: "_Variant", optimizer: torch.optim.Optimizer, turn: int) -> "_Step":
        """Take one step, and time it."""
        talker = variant.talker
        talker.backbone.flex_attention = variant.is_flex
        rng = np.random.default_rng([self.seed, turn])
        examples = [self._draw(rng, talker) for _ in range(self.num_rows)]
        start = self._now()
        with record_function(PREFIX + REST):
            with self._part("data"):
                batch = collate(examples).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                text = self._text_of(batch, talker)
                talker_start = self._now()
                with self._part("forward"):
                    output = talker(text, batch.units, batch.unit_lengths, torch.Generator().manual_seed(turn))
            with self._part("backward"):
                output.loss.backward()
            with self._part("optimizer"):
                _update(talker, optimizer)
            optimizer.zero_grad(set_to_none=True)
        end = self._now()
        assert batch.unit_lengths is not None
        return _Step(end - start, end - talker_start, int(batch.unit_lengths.sum()))

    def _profiled_shares(self, variant: "_Variant", optimizer: torch.optim.Optimizer, turn: int) -> dict[str, float]:
        """Take one step under the profiler; give the share of each part."""
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            self._step(variant, optimizer, turn)
        split = split_of(profiler.events() or [])
        return {part: split[part] / sum(split.values()) for part in PARTS if part in split}

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """Mark a part of a step, and let it end when the device has done it."""
        with record_function(PREFIX + name):
            yield
            wait_for(self.device)

    def _draw(self, rng: np.random.Generator, talker: AnchoredTalker) -> SpokenExample:
        units = rng.integers(talker.vocabulary.num_codes, size=rng.integers(self.num_units // 2, self.num_units + 1))
        query = rng.normal(0.0, 0.1, round(self.query_s * SAMPLE_RATE_HZ)).astype(np.float32)
        return SpokenExample("drawn", "drawn", torch.from_numpy(query), torch.from_numpy(units))

    @torch.no_grad()
    def _text_of(self, batch: SpokenBatch, talker: AnchoredTalker) -> TextStates:
        """Let the thinker read replies of text tokens drawn at random; without one, draw its states."""
        shape = self.num_rows, self.num_text_tokens
        lengths = torch.full((self.num_rows,), self.num_text_tokens)
        thinker = self.thinker
        if thinker is None:
            sizes = (len(norm.weight) for norm in (talker.anchors.hidden_norm, talker.anchors.embedding_norm))
            return TextStates(*(torch.randn(*shape, size, device=self.device) for size in sizes), lengths)
        language_model = thinker.language_model.to(self.device).eval()
        encoder, adaptor = thinker.speech_encoder.to(self.device).eval(), thinker.adaptor.to(self.device).eval()
        with self._part("encoder"):
            frames, num_frames = encoder(batch.query, batch.query_lengths)
        with self._part("thinker"):
            audio, _ = adaptor(frames, num_frames)
            embedding = language_model.embed(torch.zeros(shape, dtype=torch.int64, device=self.device))
            hidden = language_model(torch.cat([audio.to(embedding.dtype), embedding], dim=1))
        return TextStates(hidden[:, -self.num_text_tokens :], embedding, lengths)

    def _now(self) -> float:
        """Wait for the device, and look at the clock."""
        wait_for(self.device)
        return time.perf_counter()


def _update(talker: AnchoredTalker, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_([one for one in talker.parameters() if one.grad is not None], 1.0)
    optimizer.step()


@dataclass(frozen=True)
class _Variant:
    """A way to train a talker: its label in tables, the talker, and whether it attends by flex attention."""

    label: str
    talker: AnchoredTalker
    is_flex: bool


@dataclass(frozen=True)
class _Step:
    """What a step took.

    Attributes:
        seconds: All of it.
        talker_seconds: Forward, backward and optimizer.
        num_tokens: Speech tokens.
    """

    seconds: float
    talker_seconds: float
    num_tokens: int


def _summary(steps: list[_Step], shares: list[dict[str, float]]) -> dict[str, Any]:
    """Give medians, 10th and 90th percentiles: the talker's tokens per second, a step's ms, its parts in percent."""
    return {
        "tokens_per_s": spread_of([one.num_tokens / one.talker_seconds for one in steps]),
        "step_ms": spread_of([1000 * one.seconds for one in steps]),
        "parts_percent": {part: spread_of([100 * one[part] for one in shares]) for part in shares[0]},
    }


def _table(about: dict[str, Any], measured: dict[str, dict[str, Any]]) -> str:
    parts = list(next(iter(measured.values()))["parts_percent"])
    head = f"| talker | tokens/s of the talker | step, ms | {', % | '.join(parts)}, % |"
    rows = []
    for name, figures in measured.items():
        median, low, high = figures["tokens_per_s"]
        cells = [_cell(figures["step_ms"]), *(_cell(figures["parts_percent"][part]) for part in parts)]
        rows.append(f"| {name} | {median:,.1f} ({low:,.1f} to {high:,.1f}) | {' | '.join(cells)} |")
    about = {**about, "peak_memory_gb": f"{about['peak_memory_gb']:.2f} GB at most"}
    intro = "; ".join(map(str, about.values())) + ". Medians (10th to 90th percentile); shares under the profiler."
    return "\n".join([intro, "", head, "|" + "---|" * (len(parts) + 3), *rows]) + "\n"


def _cell(spread: Spread) -> str:
    digits = 1 if spread.median < 100 else 0
    median, low, high = (f"{value:,.{digits}f}" for value in spread)
    return f"{median} ({low} to {high})"
