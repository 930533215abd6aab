"""When each stage of a reply was at work, and what that says of the time to the first sound."""

from dataclasses import dataclass, field
from itertools import pairwise

SPEECH_ENCODER, THINKER, TALKER, VOCODER = STAGES = ("speech_encoder", "thinker", "talker", "vocoder")


@dataclass
class PartTimes:
    """Seconds of each part of the system."""

    speech_encoder_s: float = 0.0
    thinker_s: float = 0.0
    talker_s: float = 0.0
    vocoder_s: float = 0.0

    def as_milliseconds(self) -> dict[str, float]:
        """Give the parts and their total, in ms, under the names of the paper's table."""
        parts = {name.removesuffix("_s"): 1000 * value for name, value in vars(self).items()}
        return {**parts, "total": sum(parts.values())}


@dataclass(frozen=True)
class Span:
    """One piece of work of one stage.

    Attributes:
        stage: One of `STAGES`.
        index: Number of the thinker's token, or of the talker's or the vocoder's block.
        start_s: When it began, in seconds since the end of the query.
        end_s: When it was done.
    """

    stage: str
    index: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Delivery:
    """One block of a reply as its listener got it.

    Attributes:
        num_text_tokens: Text tokens that the talker had read by then.
        at_s: When the samples were handed over, in seconds since the end of the query.
    """

    num_text_tokens: int
    at_s: float


@dataclass
class Timeline:
    """Work of all stages, and what came of it.

    Stages add spans from their own threads.

    Attributes:
        spans: Pieces of work, those of one stage in their order.
        deliveries: Blocks in their order.
    """

    spans: list[Span] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)

    def add(self, stage: str, index: int, place: tuple[float, float]) -> None:
        """Add a piece of work, from when to when it was done."""
        self.spans.append(Span(stage, index, *place))

    def of(self, stage: str) -> list[Span]:
        """Give the pieces of work of one stage."""
        return [span for span in list(self.spans) if span.stage == stage]

    @property
    def end_s(self) -> float:
        """When the last piece of work was done."""
        return max((span.end_s for span in list(self.spans)), default=0.0)

    def busy(self) -> PartTimes:
        """Sum up the work of each stage, whatever else ran meanwhile."""
        spans = list(self.spans)
        return _as_parts(
            {stage: sum(one.end_s - one.start_s for one in spans if one.stage == stage) for stage in STAGES}
        )

    def parts_until(self, end_s: float) -> PartTimes:
        """Divide the time up to a moment among the stages, so that the parts add up to it.

        While several stages are at work, the time counts for the one that is nearest to the sound. While none is, it
        counts for the one that begins next, or for the vocoder if none does.

        Args:
            end_s: The moment, in seconds since the end of the query.
        """
        spans = sorted((span for span in list(self.spans) if span.start_s < end_s), key=lambda span: span.start_s)
        moments = {0.0, end_s, *(span.start_s for span in spans), *(span.end_s for span in spans)}
        parts = dict.fromkeys(STAGES, 0.0)
        for start_s, until_s in pairwise(sorted(moment for moment in moments if moment <= end_s)):
            at_work = [span.stage for span in spans if span.start_s <= start_s and span.end_s >= until_s]
            following = (span.stage for span in spans if span.start_s >= until_s)
            stage = max(at_work, key=STAGES.index) if at_work else next(following, VOCODER)
            parts[stage] += until_s - start_s
        return _as_parts(parts)


def _as_parts(seconds: dict[str, float]) -> PartTimes:
    return PartTimes(**{f"{stage}_s": value for stage, value in seconds.items()})
