"""A file is there whole or as it was before, and needs nothing but the standard library to be written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.formats.atomic_files import remove_partial_files, replacing, write_array, write_json, write_text


def test_a_file_appears_at_the_end_and_nothing_else(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        assert [path.name for path in tmp_path.iterdir()] == [partial.name]
        assert partial.name.startswith(".")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_after_an_error_the_file_is_as_before(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.txt.99.partial", "a.partial", ".hidden", "a.txt"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.partial", ".hidden", "a.txt"}


@pytest.mark.parametrize("content", [{"a": [1, 2.5, None]}, ["你好", "é"], "half a pair: \ud800"])
def test_json_comes_back(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


def test_an_array_comes_back_and_objects_are_refused(tmp_path: Path) -> None:
    write_array(tmp_path / "a.npy", np.arange(5, dtype=np.int32))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="allow_pickle"):
        write_array(tmp_path / "a.npy", np.array([{}]))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4]


def test_only_the_standard_library_is_imported() -> None:
    code = "import sys, datamodules.formats.atomic_files; sys.exit(bool({'numpy', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
