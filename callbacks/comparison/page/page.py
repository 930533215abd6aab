"""Writes the page of a comparison: one file with everything inline."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from callbacks.comparison.page.charts import draw_charts, talker_colours
from callbacks.comparison.page.dialogues import describe_dialogue, order_dialogues
from callbacks.comparison.page.fairness import describe_fairness
from callbacks.comparison.page.groups import Experiment, group_runs
from callbacks.comparison.page.run_files import read_run
from callbacks.comparison.page.table import lay_out
from datamodules.formats.atomic_files import write_text

HERE = Path(__file__).parent
MAX_BYTES = 15_000_000
# What each plot shows; the page has those in this order that are drawn.
CAPTIONS = {
    "pareto": (
        "Word errors over speed",
        "Lower and further left is better; the grey steps join the decodings that no other one beats in both. "
        "Whiskers are 95 % intervals over dialogues, or the range over seeds.",
    ),
    "steps": ("Word errors over steps per block", "Decodings of one talker and rule are joined."),
    "first_chunk": (
        "The wait for the first sound, by stage",
        "Medians over the dialogues; each stage begins where the one before it ends.",
    ),
    "lengths": (
        "Word errors by length of the reply",
        "One decoding per talker is drawn; a click in the legend adds others. Whiskers are 95 % intervals.",
    ),
    "kinds": ("Word errors by kind of query", "In percent of the words of each kind; few replies say little."),
}


def write_page(folders: Sequence[Path], file: Path, max_bytes: int = MAX_BYTES) -> Path:
    """Write the page of one comparison, or of several.

    Args:
        folders: Run directories that hold a comparison each.
        file: The page.
        max_bytes: Size of the file; dialogues that do not fit are left out, and the page says how many.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If a run holds no comparison.
        UserError: If a run is damaged, or two are the same experiment with the same seed.
    """
    experiments = group_runs([read_run(folder) for folder in folders])
    content = _describe(experiments)
    page = _render(content, "[]", 0)
    # Room for the words that say how many dialogues were left out.
    texts, left_out = _fit(experiments, max_bytes - len(page.encode()) - 200)
    write_text(file, _render(content, f"[{','.join(texts)}]", left_out))
    return file


def _fit(experiments: Sequence[Experiment], num_bytes: int) -> tuple[list[str], int]:
    """Give the dialogues that fit, as JSON, and the number of those that do not."""
    texts: list[str] = []
    dialogues = order_dialogues(experiments)
    for dialogue in dialogues:
        text = _as_json(describe_dialogue(dialogue))
        num_bytes -= len(text.encode()) + 1
        if num_bytes < 0:
            break
        texts.append(text)
    return texts, len(dialogues) - len(texts)


def _describe(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Give what the template shows but for the dialogues."""
    charts = draw_charts(experiments)
    inline = {name: Markup((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")}
    return dict(
        experiments=experiments,
        fairness=describe_fairness(experiments),
        table=lay_out(experiments),
        colours=talker_colours(experiments),
        captions={name: CAPTIONS[name] for name in CAPTIONS if name in charts},
        charts=Markup(_as_json(charts)),
        has_seeds=any(len(experiment.runs) > 1 for experiment in experiments),
        plotly=Markup(get_plotlyjs()),
        style=inline["page.css"],
        script=inline["page.js"],
    )


def _render(content: dict[str, Any], dialogues: str, num_left_out: int) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("page.html")
    return template.render(content, dialogues=Markup(dialogues), num_left_out=num_left_out)


def _as_json(value: Any) -> str:
    """Write JSON that may stand within a script element: neither `</script>` nor `<!--` can occur."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """Put null for numbers that JSON does not know, such as the interval of a kind that few draws hold."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
