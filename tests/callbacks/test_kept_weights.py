"""Weights kept at validations are those of their steps, and stay so when a training resumes."""

from pathlib import Path

import pytest
import torch

from callbacks.kept_weights import KeptWeights, find_kept
from tests.lightning_modules.test_speech_llm import fit, make_llm

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


def kept_of(folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    every = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    fit(make_llm("ntp"), 4, callbacks=[KeptWeights()], default_root_dir=folder, **every)
    return {step: torch.load(file, weights_only=True)["state_dict"] for step, file in find_kept(folder).items()}


def test_they_are_those_of_their_steps(tmp_path: Path) -> None:
    kept = kept_of(tmp_path)
    assert list(kept) == [2, 4]
    llm = make_llm("ntp")
    fit(llm, 4)
    trained = {f"talkers.ntp.{key}": one for key, one in llm.talkers["ntp"].state_dict().items()}
    assert kept[2].keys() == kept[4].keys() == trained.keys(), "what trains, and nothing else"
    assert all(torch.equal(kept[4][key], one) for key, one in trained.items()), "keeping them changes nothing"
    assert any(not torch.equal(kept[2][key], one) for key, one in trained.items())
    assert not list((tmp_path / "kept").glob(".*")), "nothing is left beside them"


def test_a_training_without_them_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="kept no weights; train it with the callback"):
        find_kept(tmp_path)
