"""The page HParams: a line for each decoding, read back from the event files as TensorBoard reads them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from callbacks.comparison.board_table import write_table
from callbacks.comparison.rows import ComparisonRow


def make_row(name: str, talker: str | None, steps: int | None, wer: float) -> ComparisonRow:
    row = ComparisonRow(name, talker, steps, "", 10, wer, (0.0, 1.0), wer, wer + 0.01, (0.0, 1.0))
    if talker is not None:
        row.rtf, row.tokens_per_s, row.first_chunk_ms = 0.05, 500.0, {"thinker": 10.0, "total": 60.0}
    return row


def test_each_decoding_is_a_line_with_its_settings_and_figures(tmp_path: Path) -> None:
    rows = [make_row("ntp", "ntp", 16, 0.05), make_row("mdm 4", "mdm", 4, 0.125), make_row("original", None, None, 0.0)]
    write_table(rows, tmp_path, "comparison-1a2b3c4d")
    assert {path.name for path in (tmp_path / "table").iterdir()} == {"ntp", "mdm_4"}, "references are no lines"
    for row, folder in zip(rows, ("ntp", "mdm_4"), strict=False):
        events = EventAccumulator(str(tmp_path / "table" / folder))
        events.Reload()
        content = events.PluginTagToContent("hparams")
        start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
        assert start["comparison"].string_value == "comparison-1a2b3c4d" and start["decoding"].string_value == row.name
        assert start["talker"].string_value == row.talker and start["steps_per_block"].number_value == row.steps
        declared = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
        figures = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
        assert {one.name.tag for one in declared.metric_infos} == set(figures)
        assert round(figures["table/wer_percent"], 3) == 100 * row.wer_micro
        assert round(figures["table/gold_wer_percent"], 3) == round(100 * row.wer_micro + 1, 3)
        assert figures["table/first_chunk_ms"] == 60.0 and "table/text_exact_percent" not in figures
