"""Speech tokens are read from plain arrays and from released records, and nothing that a file names is run."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.formats.unit_files import read_units

TOKENS = [3, 1, 2]


def save(folder: Path, content: object) -> Path:
    path = folder / "units.npy"
    np.save(path, content, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    "content",
    [
        np.array(TOKENS, np.int16),
        np.array(TOKENS, np.int64),
        np.array([TOKENS], np.uint16),
        {"speech_token": np.array([TOKENS]), "speech_token_len": 3},
        {"speech_token": np.array([TOKENS]), "speech_token_len": np.array([3], np.int32)},
        {"speech_token": torch.tensor([TOKENS], dtype=torch.int32), "speech_token_len": torch.tensor([3])},
        {"speech_token": torch.tensor([TOKENS])},
        {"speech_token": np.array([[*TOKENS, 0, 0]]), "speech_token_len": np.int64(3)},
    ],
)
def test_plain_and_released_files_hold_the_same(tmp_path: Path, content: object) -> None:
    tokens = read_units(save(tmp_path, content), num_codes=4)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == TOKENS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([1.0, 2.0]), "type float64"),
        (np.array([], np.int32), r"shape \(0,\)"),
        (np.ones((2, 3), np.int32), r"shape \(2, 3\)"),
        (np.array([0, 4]), "outside of the codebook of 4 codes"),
        (np.array([-1, 2]), "outside of the codebook"),
        ({"other": 1}, "speech_token"),
        ({"speech_token": Path("x")}, "it asks for pathlib"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = save(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_units(path, num_codes=4)
    assert str(path) in str(caught.value)


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.npy: no such file"):
        read_units(tmp_path / "absent.npy")


@given(cut=st.integers(0, 139))
def test_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array(TOKENS, np.int32))
    path = tmp_path_factory.mktemp("cut") / "units.npy"
    path.write_bytes(buffer.getvalue()[:cut])
    with pytest.raises(ValueError, match="write it again"):
        read_units(path)


def test_a_type_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"speech_token": np.array(TOKENS, "m8[s]")})
    with pytest.raises(ValueError, match="'m8', which is not a number"):
        read_units(path)


class Harmful:
    """Pickles as a call of a function."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "harmed"
    path = save(tmp_path, {"speech_token": Harmful(target)})
    with pytest.raises(ValueError, match="which is not an array"):
        read_units(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Harmful(target)))
    assert target.exists()
