"""Each run says what made it, and a run by other code says so when it is reused."""

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from experiments.engine import environment
from experiments.engine.environment import digest_sources, read_commit, read_versions
from experiments.engine.pipeline import execute
from experiments.engine.plan import make_plan
from experiments.engine.runs import read_json, write_json

JOB = "job: {class_path: tests.experiments.engine.toy.ToyJob}\n"


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True)


def test_a_commit_is_read_from_the_checkout_itself(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    assert read_commit(root) == (None, None)
    git(root, "init")
    (root / "a.py").write_text("a = 1\n")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    commit, is_dirty = read_commit(root)
    assert commit is not None and len(commit) == 40 and is_dirty is False
    (root / "a.py").write_text("a = 2\n")
    assert read_commit(root) == (commit, True)
    (root / "copy").mkdir()
    assert read_commit(root / "copy") == (None, None), "a copy within another checkout is none of its commits"


def test_sources_differ_by_name_and_content(tmp_path: Path) -> None:
    digests = set()
    for index, (name, content) in enumerate([("a.py", "x"), ("a.py", "y"), ("b.py", "x"), ("a.txt", "x")]):
        room = tmp_path / str(index) / "callbacks"
        room.mkdir(parents=True)
        (room / name).write_text(content)
        digests.add(digest_sources(room.parent))
    assert len(digests) == 4


def test_versions_are_the_installed_ones(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("# tools\nnumpy==0.1\n\nno-such-package==1.0\n")
    versions = read_versions(tmp_path / "requirements.txt")
    assert versions == {"numpy": metadata.version("numpy"), "no-such-package": None}


def test_a_run_by_other_code_is_reused_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.yaml").write_text(JOB)
    plan = make_plan(tmp_path / "toy.yaml", [f"runs_dir={tmp_path}/runs"])
    (result,) = execute(plan)
    file = result.run.environment_file
    written = read_json(file)
    assert written["sources"] == digest_sources(environment.ROOT)
    assert {"commit", "is_dirty", "command", "packages", "python", "platform", "num_cpus", "gpus"} <= written.keys()
    assert written["packages"]["torch"] == metadata.version("torch")
    execute(plan)
    assert "other code" not in capsys.readouterr().out
    monkeypatch.setattr(environment, "read_commit", lambda root: ("5e6f7a8b" * 5, False))
    for then, told in (
        (
            {"sources": "0" * 64, "commit": "1a2b3c4d" * 5, "is_dirty": True},
            "commit 1a2b3c4d with changes, now 5e6f7a8b",
        ),
        ({"sources": "0" * 64, "commit": None, "is_dirty": None}, f"sources 00000000, now {written['sources'][:8]}"),
    ):
        write_json(file, then)
        (reused,) = execute(plan)
        assert reused.is_reused
        assert f"[1/1] toy: made by other code ({told})\n" in capsys.readouterr().out
    result.run.finished_file.unlink()
    execute(plan)
    assert f"[1/1] toy: begun by other code ({told})\n" in capsys.readouterr().out
    assert read_json(file)["sources"] == written["sources"]
