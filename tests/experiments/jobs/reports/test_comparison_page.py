"""One command lays several comparisons out on one page, and tells mistakes in a line."""

from pathlib import Path

import pytest

from experiments import run
from tests.callbacks.comparison.page.tiny_run import write_run


def test_compare_takes_any_number_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rtf in (("A", 0.1), ("B", 0.2)):
        write_run(tmp_path / name / "c-1", rtf=rtf)
    assert run.main(["compare", "runs=[A/c-1, B/c-1]"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    (page,) = (tmp_path / "runs" / "compare").glob("compare-*/comparison.html")
    assert last == f"to listen and look, open {page.relative_to(tmp_path)} in a browser"
    text = page.read_text(encoding="utf-8")
    assert "<title>Comparison: A, B</title>" in text
    assert run.main(["compare", "runs=[A/c-1]"]) == 0
    assert len([*(tmp_path / "runs" / "compare").glob("compare-*/comparison.html")]) == 2, "other runs, another page"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "no runs are given; say where finished comparisons are: runs=[PATH, PATH]"),
        (["runs=[gone]"], "gone holds no comparison; give the directory of a finished stage that compares"),
        (["runs=[.]"], ". holds no comparison; give the directory"),
        (["runs={a: b}"], "job.init_args.runs: expected Sequence[str]"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run.main(["compare", *words]) == 2
    assert problem in capsys.readouterr().err.splitlines()[-1]
