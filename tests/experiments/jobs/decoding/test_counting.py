"""What a block reads and dispatches is counted as it is decoded."""

from collections.abc import Callable, Iterable

import pytest
import torch

from experiments.jobs.decoding.counting import count_launches, count_reads
from experiments.jobs.decoding.executions import Stepwise
from experiments.jobs.decoding.talkers import ban_eos, draw_text
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.streaming import SpeechChunk
from lightning_modules.talker.decoding.unmasking import Unmasking
from tests.lightning_modules.talker.conftest import in_steps, make_talker

CPU = torch.device("cpu")
NUM_ANCHORS, BLOCK = 2, 8


def stream_of(talker: Talker, decoding: Decoding) -> Callable[[], Iterable[SpeechChunk]]:
    """Three blocks in which EOS never comes, of a text that comes block by block."""
    ban_eos({"it": talker})
    text, runner = draw_text(talker, 3, torch.float32, CPU), Stepwise().prepare(talker, decoding, 3)
    assert runner is not None
    return lambda: runner(iter(text))


@pytest.mark.parametrize(
    ("kind", "decoding", "num_passes"),
    [
        ("ntp", in_steps(8), 8),
        ("mtp", in_steps(4), 4),
        ("mtp", in_steps(2), 2),
        *(("mdm", in_steps(steps), steps) for steps in (1, 2, 4, 8)),
        *(("mdm", in_steps(steps, fused_commit=False), steps + 1) for steps in (1, 4)),
        ("mdm", in_steps(4, unmasking=Unmasking(confidence_threshold=1e-6)), 1),
        ("mdm", in_steps(4, unmasking=Unmasking(confidence_threshold=1.0)), 4),
        ("set_block", in_steps(4, refinement=Refinement(2)), 4),
        ("vocalnet", in_steps(8), 1 + 8),
        ("vocalnet", in_steps(2), 1 + 2),
    ],
)
def test_passes_per_block_are_counted_as_reported(kind: str, decoding: Decoding, num_passes: int) -> None:
    """VocalNet's talker reads more text ahead of each block, in a pass of its own."""
    talker = make_talker(kind)
    stream = stream_of(talker, decoding)
    assert count_reads(talker, stream).num_passes == num_passes
    assert [chunk.num_forwards for chunk in stream()][1] == num_passes


def numel(*parameters: torch.Tensor) -> int:
    return sum(one.numel() for one in parameters)


@pytest.mark.parametrize(("steps", "fused"), [(1, True), (4, True), (4, False)])
def test_bytes_and_operations_are_those_of_the_weights(steps: int, fused: bool) -> None:
    talker = make_talker("mdm")
    reads = count_reads(talker, stream_of(talker, in_steps(steps, fused_commit=fused)))
    backbone, anchors = list(talker.backbone.parameters()), list(talker.anchors.parameters())
    matrices = numel(*(one for one in backbone if one.ndim == 2))
    num_passes = steps if fused else steps + 1
    # the finished block before goes through the layers once, in whatever pass, and never through the output head
    operations = matrices * (steps + 1) * BLOCK + numel(talker.head.weight) * steps * BLOCK
    assert reads.weight_operations == 2 * (operations + numel(talker.anchors.projection.weight) * NUM_ANCHORS)
    width = talker.backbone.width
    # each step looks up a row for each token and reads "no text"; the finished block does so once more
    rest = reads.weight_bytes / 4 - num_passes * numel(*backbone) - steps * numel(talker.head.weight)
    assert numel(*anchors) <= rest <= numel(*anchors) + (steps + 1) * (BLOCK * width + width)
    assert reads.intensity == reads.weight_operations / reads.weight_bytes
    assert reads.rows_per_pass == pytest.approx(BLOCK * (steps + 1) / num_passes, rel=0.15)


def test_what_a_pass_reads_several_times_counts_once_as_bytes() -> None:
    """Each layer of MTP uses the one output head."""
    talker = make_talker("mtp")
    one, two = (count_reads(talker, stream_of(talker, in_steps(steps))) for steps in (4, 2))
    further = numel(*talker.extra_layers[1].parameters(), *talker.extra_layers[2].parameters())
    lookups = 4 * BLOCK * talker.backbone.width
    assert abs(two.weight_bytes / 2 - one.weight_bytes / 4 - 4 * further) < lookups + 4 * numel(
        *talker.anchors.parameters()
    )


def test_operators_and_host_reads_of_a_block() -> None:
    """A threshold makes the host look at each step, NTP at each token; EOS is looked for without an operator."""
    talker = make_talker("mdm")
    four = count_launches(stream_of(talker, in_steps(4)), CPU)
    assert four.num_host_reads == 0 and 200 < four.num_operators < 1000
    assert (four.num_kernels, four.num_launches, four.num_waits) == (None, None, None)
    adaptive = count_launches(stream_of(talker, in_steps(4, unmasking=Unmasking(confidence_threshold=1.0))), CPU)
    assert adaptive.num_host_reads == 4 and adaptive.num_operators > four.num_operators
    assert count_launches(stream_of(make_talker("ntp"), in_steps(8)), CPU).num_host_reads == 8


def test_the_profiler_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    count_launches(stream_of(make_talker("mdm"), in_steps(1)), CPU)
    print("heard")
    assert capfd.readouterr() == ("heard\n", "")
