"""Whole replies, their parts one after the other or at the same time: how soon the first samples come, and the last."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.jobs.decoding.first_chunk import FirstChunk
from experiments.jobs.decoding.machine import wait_for
from experiments.jobs.decoding.replies import Case
from experiments.jobs.decoding.statistics import order_of_turn, paired_ratio, spread_of
from lightning_modules.errors import UserError
from lightning_modules.inference.clocks import StopWatch, Timed
from lightning_modules.inference.pipelines import Overlapped, Pipeline, Sequential
from lightning_modules.inference.stages import run_stages
from lightning_modules.inference.timeline import SPEECH_ENCODER, THINKER, Timeline
from lightning_modules.number_checks import require_at_least, require_positive
from lightning_modules.talker.decoding.streaming import SpeechChunk, TextState
from lightning_modules.thinker.log_mel import SAMPLE_RATE_HZ
from lightning_modules.thinker.writing.writing import writing_for
from lightning_modules.vocoder.base import VocoderStream


@dataclass(frozen=True)
class SpokenRun:
    """One whole reply.

    Attributes:
        first_chunk_s: From the end of the query to the first samples, by the wall clock.
        seconds: Likewise to the last samples.
        heard_s: When the first samples came, by the clock of the timeline.
        timeline: When each part was at work.
        tokens: The speech tokens.
    """

    first_chunk_s: float
    seconds: float
    heard_s: float
    timeline: Timeline
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class PipelineRounds:
    """Which replies are spoken whole, under which pipelines.

    Attributes:
        decodings: Names of decodings, each measured under the last execution that knows it; unknown ones are left out.
        pipelines: By name; the first one is what others are held against.
        num_rounds: Replies of each, at most.
        time_budget_s: After this time no further round begins, and no further decoding.

    Raises:
        UserError: If there is no pipeline, no round or no time.
    """

    decodings: Sequence[str] = ("ntp", "mdm_4", "mdm_1")
    pipelines: Mapping[str, Pipeline] = field(
        default_factory=lambda: {"sequential": Sequential(), "overlapped": Overlapped()}
    )
    num_rounds: int = 7
    time_budget_s: float = 60.0

    def __post_init__(self) -> None:
        """Check the settings."""
        require_at_least(1, **{"pipelines.num_rounds": self.num_rounds})
        require_positive(**{"pipelines.time_budget_s": self.time_budget_s})
        if not self.pipelines:
            raise UserError("pipelines.pipelines: give at least one, by name")

    def measure(self, parts: FirstChunk | None, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
        """Speak replies of all pipelines in turn, by the wall clock.

        Args:
            parts: What runs before and behind the talker.
            cases: Decodings under their executions, warm.

        Returns:
            By case and pipeline: spreads of seconds to the first and the last samples, ratios to the first pipeline
            round by round, whether the tokens are the same, and the work of the reply whose first samples came in the
            median time.

        Raises:
            UserError: If there are no such parts, or a pipeline says something else than the first one.
        """
        if parts is None:
            raise UserError("pipelines: whole replies need first_chunk, the parts around the talker; give it too")
        end_s = time.perf_counter() + self.time_budget_s
        last = {case.decoding: case for case in cases if case.decoding in self.decodings}
        figures: dict[str, dict[str, Any]] = {}
        for case in last.values():
            if figures and time.perf_counter() > end_s:
                print(f"no time was left for a whole reply of {case.name}", flush=True)
                continue
            figures[case.name] = self._measure(parts, case, end_s)
        return figures

    def _measure(self, parts: FirstChunk, case: Case, end_s: float) -> dict[str, Any]:
        runs: dict[str, list[SpokenRun]] = {name: [] for name in self.pipelines}
        for pipeline in self.pipelines.values():
            speak_whole(parts, case, pipeline)
        for turn in range(self.num_rounds):
            if turn and time.perf_counter() > end_s:
                break
            for name in order_of_turn(list(runs), turn):
                runs[name].append(speak_whole(parts, case, self.pipelines[name]))
        reference = next(iter(runs.values()))
        figures = {}
        for name, own in runs.items():
            if {one.tokens for one in own} != {reference[0].tokens}:
                raise UserError(f"{case.name}: the pipeline {name} speaks other tokens than {next(iter(runs))}")
            middle = sorted(own, key=lambda one: one.first_chunk_s)[len(own) // 2]
            figures[name] = {
                "first_chunk_s": spread_of([one.first_chunk_s for one in own]),
                "seconds": spread_of([one.seconds for one in own]),
                "first_chunk_against_first": _paired(own, reference, "first_chunk_s"),
                "seconds_against_first": _paired(own, reference, "seconds"),
                "first_chunk_parts_ms": middle.timeline.parts_until(middle.heard_s).as_milliseconds(),
                "heard_s": middle.heard_s,
                "spans": [asdict(span) for span in middle.timeline.spans],
            }
        return figures


def _paired(own: Sequence[SpokenRun], reference: Sequence[SpokenRun], name: str) -> Any:
    if own is reference:
        return None
    return paired_ratio([getattr(one, name) for one in own], [getattr(one, name) for one in reference])


class _AnyTokens(VocoderStream):
    """Gives a vocoder as many tokens as were spoken, all of them its first one: a drawn talker may have more codes."""

    def __init__(self, session: VocoderStream) -> None:
        self.session = session

    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Turn tokens into samples; see the base."""
        return self.session.push(torch.zeros_like(tokens), last)


@torch.no_grad()
def speak_whole(parts: FirstChunk, case: Case, pipeline: Pipeline) -> SpokenRun:
    """Speak one reply from a query to the last samples.

    Args:
        parts: Speech encoder, language model, vocoder.
        case: Speaks its own text, whose tokens come when the language model has written as many.
        pipeline: How thinker, talker and vocoder are joined.

    Returns:
        What it took.
    """
    device = next(parts.adaptor.parameters()).device
    watch, timeline, model = StopWatch(device), Timeline(), parts.language_model
    query = torch.zeros(1, round(parts.query_s * SAMPLE_RATE_HZ), device=device)
    wait_for(device)
    start_s = watch.now()
    audio = parts.encode(query)
    encoded_s = watch.now() - start_s
    clock = pipeline.new_clock(encoded_s)
    timeline.add(SPEECH_ENCODER, 0, (0.0, encoded_s))
    template = model.embed(torch.zeros(1, parts.num_prompt_tokens, dtype=torch.int64, device=device))
    prompt, text = torch.cat([template, audio.to(template.dtype)], dim=1), list(case.text)

    def write() -> Iterator[TextState]:
        for state, _ in zip(text, writing_for(device).write(model, prompt, len(text), ()), strict=True):
            yield state

    def speak(states: Iterator[TextState]) -> Iterator[SpeechChunk]:
        return case.runner(states, case.num_blocks)

    first_chunk_s, seconds, heard_s, tokens = 0.0, 0.0, 0.0, []
    written = Timed(THINKER, write(), timeline, clock, watch)
    for block in run_stages(written, speak, _AnyTokens(parts.vocoder.stream()), pipeline, timeline, clock, watch):
        tokens += block.chunk.tokens.tolist()
        if not first_chunk_s and (len(block.samples) or block.chunk.is_last):
            first_chunk_s, heard_s = watch.now() - start_s, timeline.deliveries[-1].at_s
        seconds = watch.now() - start_s
    return SpokenRun(first_chunk_s, seconds, heard_s, timeline, tuple(tokens))
