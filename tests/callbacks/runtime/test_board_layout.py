"""The page Custom Scalars, read back from the event files as TensorBoard reads it."""

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch.utils.tensorboard import SummaryWriter

from callbacks.comparison.rows import ComparisonRow
from callbacks.runtime.board_layout import LAYOUT, add_layout


def test_charts_stand_under_their_headings_and_draw_one_tag_each(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        add_layout(writer)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [one.title for one in layout.category] == list(LAYOUT)
    assert sum(one.title.startswith("AR against MDM") for one in layout.category) == 2
    patterns = [tag for one in layout.category for chart in one.chart for tag in chart.multiline.tag]
    assert len(patterns) == len(set(patterns)) == 13
    titles = [chart.title for one in layout.category for chart in one.chart]
    assert len(titles) == len(set(titles)), "TensorBoard takes charts of one title for one"


def test_the_tags_of_a_comparison_are_drawn() -> None:
    row = ComparisonRow(
        "ntp", "ntp", 16, "", 10, 0.1, (0, 1), 0.1, 0.1, (0, 1), {}, 0.9, 100.0, 0.05, 16.0, {"total": 5.0}
    )
    patterns = [tag for charts in LAYOUT.values() for _, tags in charts.values() for tag in tags if "decode/" in tag]
    for pattern in patterns:
        assert any(re.search(pattern, tag) for tag in row.as_scalars()), pattern
