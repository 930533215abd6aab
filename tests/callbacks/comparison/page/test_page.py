"""The page holds everything, fits into its size, and takes nothing that was said for HTML."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from callbacks.comparison.page.charts import draw_charts
from callbacks.comparison.page.groups import group_runs
from callbacks.comparison.page.page import write_page
from callbacks.comparison.page.run_files import read_run
from lightning_modules.errors import UserError
from tests.callbacks.comparison.page.tiny_run import write_run

VOID = {"meta", "link", "input", "br", "img"}


class Reader(HTMLParser):
    """Collects the JSON of a page, what it would load from elsewhere, and elements that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.json: dict[str, Any] = {}
        self.loaded: list[str] = []
        self.open: list[str] = []
        self._id: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loaded += [
            value for key in ("src", "href") if (value := found.get(key)) and not value.startswith(("#", "data:"))
        ]
        self._id = found.get("id") if found.get("type") == "application/json" else None
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._id = None

    def handle_data(self, data: str) -> None:
        if self._id is not None:
            self.json[self._id] = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def read_page(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "toys" / "comparison-1")


def test_one_file_holds_players_pictures_words_and_films(run: Path, tmp_path: Path) -> None:
    file = write_page([run], tmp_path / "comparison.html")
    page = read_page(file)
    assert page.loaded == [] and file.stat().st_size < 15_000_000
    assert [one["id"] for one in page.json["dialogues"]] == ["a", "b", "c"], "worst first, beside random ones"
    first, _, last = page.json["dialogues"]
    assert first["query"]["audio"].startswith("data:audio/mpeg;base64,")
    reply = next(one for one in first["replies"] if one["name"] == "mdm_2")
    assert reply["media"]["mel"].startswith("data:image/webp;base64,") and reply["media"]["seconds"] == 0.5
    assert [(piece["kind"], piece["said"], piece["heard"]) for piece in reply["words"] if piece["kind"] != "equal"] == [
        ("substitution", "fly", "cry"),
        ("insertion", "", "now"),
    ]
    assert reply["film"] == [
        {"tokens": [5, 6, 7, 8], "order": [0, 1, 0, 2], "steps": 3, "passes": 2, "draft": [None, None, None, 3]},
        {"tokens": [9], "order": [0], "steps": 1, "passes": 1, "draft": [None]},
    ]
    one_by_one = next(one for one in first["replies"] if one["name"] == "ntp")["film"]
    assert [block["order"] for block in one_by_one] == [[0, 1, 2, 3], [0]]
    silent = next(one for one in last["replies"] if one["name"] == "mdm_2")
    assert silent["media"] is None and silent["film"] == []
    text = file.read_text(encoding="utf-8")
    assert "Tea for <b>" not in text and last["gold"] == 'Tea for <b>Bob</b> & "Eve".'


def test_dialogues_that_do_not_fit_are_counted(run: Path, tmp_path: Path) -> None:
    whole = write_page([run], tmp_path / "whole.html").stat().st_size
    size = whole - 1000
    page = write_page([run], tmp_path / "less.html", size)
    assert page.stat().st_size <= size
    assert len(read_page(page).json["dialogues"]) == 2
    assert "1 more dialogues did not fit" in page.read_text(encoding="utf-8")


def test_plotly_takes_every_plot(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "others" / "comparison-2", rtf=0.2)
    for runs in ([run], [run, other]):
        charts = draw_charts(group_runs([read_run(one) for one in runs]))
        assert charts.keys() == {"pareto", "steps", "first_chunk", "lengths", "kinds"}
        for name, chart in charts.items():
            go.Figure(chart)  # raises ValueError for what plotly does not know
            assert chart["data"], name
        first, *stages = charts["first_chunk"]["data"]
        assert first["base"] == [0.0] * len(first["x"]) and len(stages) == 3
        for before, after in zip([first, *stages], stages, strict=False):
            ends = [base + width for base, width in zip(before["base"], before["x"], strict=True)]
            assert after["base"] == pytest.approx(ends), "each stage begins where the one before it ends"


def test_the_front_holds_what_nothing_beats_in_both(tmp_path: Path) -> None:
    fast, slow = write_run(tmp_path / "fast" / "c-1", rtf=0.1), write_run(tmp_path / "slow" / "c-2", rtf=0.2)
    rows = json.loads((slow / "results.json").read_text())
    for row in rows:
        row["wer_micro"] = {"ntp": 0.02, "mdm_2": 0.3}.get(row["name"], 0.0)
    (slow / "results.json").write_text(json.dumps(rows))
    front = draw_charts(group_runs([read_run(fast), read_run(slow)]))["pareto"]["data"][0]
    assert (front["x"], front["y"]) == ([0.1, 0.2], [10.0, 2.0])


def test_seeds_are_spread_and_experiments_are_columns(tmp_path: Path) -> None:
    config = {"datamodule": {"init_args": {"root": "gone", "seed": 0}}, "inputs": {}}
    configs = (config, config | {"seed_group": "talkers"})  # the second one drew its seed for some stages alone
    seeds = [write_run(tmp_path / "toys" / f"c-{seed}", seed, 0.2 * seed - 0.1, configs[seed - 1]) for seed in (1, 2)]
    other = write_run(tmp_path / "others" / "c-3", 1, 0.4, {**config, "module": {"init_args": {"draw_weights": False}}})
    experiments = group_runs([read_run(run) for run in (*seeds, other)])
    assert [(one.label, one.seeds) for one in experiments] == [("toys", "1, 2"), ("others", "1")]
    text = write_page([*seeds, other], tmp_path / "comparison.html").read_text(encoding="utf-8")
    row = re.search(r'<tr>\s*<th scope="row" data-value="mdm_2">.*?</tr>', text, re.DOTALL)
    assert row is not None
    assert "0.2000<small>0.1000 to 0.3000</small>" in row[0] and "0.4000<small>0.3600 to 0.4400</small>" in row[0]
    names = [one["run"] for one in read_page(tmp_path / "comparison.html").json["dialogues"][0]["replies"]]
    assert dict.fromkeys(names) == {"toys, seed 1": None, "toys, seed 2": None, "others": None}
    with pytest.raises(UserError, match="same experiment with the seed 1"):
        group_runs([read_run(seeds[0]), read_run(seeds[0])])


def test_mistakes_say_what_to_do(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no comparison; give the directory"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no run to compare"):
        group_runs([])
    old = write_run(tmp_path / "old")
    (old / "samples.json").unlink()
    with pytest.raises(UserError, match="no samples.json: an earlier version made it; run its stage again"):
        read_run(old)
    (old / "samples.json").write_text("[")
    with pytest.raises(UserError, match="is damaged"):
        read_run(old)
