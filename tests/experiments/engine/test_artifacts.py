"""Parts of earlier runs: only what is asked for is built, and its weights must fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.engine.artifacts import load_trained, without_weights
from experiments.engine.configuration.builder import build
from experiments.engine.runs import Run, write_config
from lightning_modules.errors import UserError
from lightning_modules.sharding import sharded_files
from tests.experiments.engine.toy import ToyModule

TOY_MODULE = "tests.experiments.engine.toy.ToyModule"
LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}


def wrapped(linear: nn.Linear) -> nn.Module:
    return nn.ModuleDict({"inner": linear})


def make_run(directory: Path, part: Any, drop: tuple[str, ...] = (), left_out: tuple[str, ...] = ()) -> Run:
    """Write a run whose weights are drawn at random, but for those dropped."""
    run = Run(directory, "1a2b3c4d")
    module = {"class_path": TOY_MODULE, "init_args": {"part": part}}
    write_config(run.config_file, {"module": module, "fingerprint": run.fingerprint})
    run.checkpoint_file.parent.mkdir()
    state = {key: torch.randn_like(value) for key, value in build(module, "module").state_dict().items()}
    for key in drop:
        del state[key]
    torch.save({"state_dict": state, "left_out": list(left_out)}, run.checkpoint_file)
    return run


def weights_of(run: Run) -> dict[str, Tensor]:
    return torch.load(run.checkpoint_file, weights_only=True)["state_dict"]


def load_spec(run: Run, attribute: str) -> dict[str, Any]:
    name = "experiments.engine.artifacts.load_trained"
    return {"class_path": name, "init_args": {"run": str(run.directory), "attribute": attribute}}


def test_only_what_was_asked_for_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "a", LINEAR)
    monkeypatch.setattr(ToyModule, "__init__", lambda self, **arguments: pytest.fail("the whole module was built"))
    before = torch.get_rng_state()
    part = load_trained(run.directory, "part")
    assert isinstance(part, nn.Linear) and not part.training
    torch.testing.assert_close(part.weight.data, weights_of(run)["part.weight"], rtol=0, atol=0)
    torch.testing.assert_close(part.bias.data, weights_of(run)["part.bias"], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert load_trained(run.directory, "part.weight").shape == (3, 2)


def test_a_part_that_no_argument_names_comes_from_the_whole_module(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", {"class_path": f"{__name__}.wrapped", "init_args": {"linear": LINEAR}})
    weights = weights_of(run)
    torch.testing.assert_close(load_trained(run.directory, "net.0").weight.data, weights["net.0.weight"])
    torch.testing.assert_close(load_trained(run.directory, "part.inner").weight.data, weights["part.inner.weight"])
    with pytest.raises(UserError, match=r"has no part.linear: .*; name one of its parts"):
        load_trained(run.directory, "part.linear")


@pytest.mark.parametrize("attribute", ["part", None])
def test_only_weights_that_were_left_out_may_be_missing(tmp_path: Path, attribute: str | None) -> None:
    declared = make_run(tmp_path / "a", LINEAR, drop=("part.bias",), left_out=("part.bias",))
    load_trained(declared.directory, attribute)
    lost = make_run(tmp_path / "b", LINEAR, drop=("part.bias", "part.weight"), left_out=("part.bias",))
    told = r"last.ckpt does not fit its module: 1 weights are missing \(\['part.weight'\]\), .*; train that"
    with pytest.raises(UserError, match=told):
        load_trained(lost.directory, attribute)
    no_bias = {**LINEAR, "init_args": {**LINEAR["init_args"], "bias": False}}
    other = make_run(tmp_path / "c", LINEAR)
    module = {"class_path": TOY_MODULE, "init_args": {"part": no_bias}}
    write_config(other.config_file, {"module": module, "fingerprint": other.fingerprint})
    with pytest.raises(UserError, match=r"1 are unexpected \(\['part.bias'\]\)"):
        load_trained(other.directory, attribute)


def test_a_frozen_part_comes_from_its_own_run_and_what_trained_lies_over_it(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", LINEAR)
    second = make_run(tmp_path / "b", load_spec(first, "part"), drop=("part.bias",), left_out=("part.bias",))
    part = load_trained(second.directory, "part")
    torch.testing.assert_close(part.bias.data, weights_of(first)["part.bias"], rtol=0, atol=0)
    torch.testing.assert_close(part.weight.data, weights_of(second)["part.weight"], rtol=0, atol=0)


def test_without_weights_planned_and_finished_runs_give_parts_on_meta(tmp_path: Path) -> None:
    finished = make_run(tmp_path / "a", LINEAR)
    finished.checkpoint_file.write_text("never read")
    planned = {"module": {"class_path": TOY_MODULE, "init_args": {"width": 16, "part": load_spec(finished, "part")}}}
    with torch.device("meta"), without_weights({tmp_path / "b": planned}):
        part = load_trained(tmp_path / "b", "part")
        hidden = load_trained(tmp_path / "b", "net.0")
        with pytest.raises(FileNotFoundError, match="is no run directory"):
            load_trained(tmp_path / "c")
    assert part.weight.is_meta and part.weight.shape == (3, 2)
    assert hidden.weight.is_meta and hidden.weight.shape == (16, 1)
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        load_trained(tmp_path / "b")


def test_a_checkpoint_of_shares_is_read_as_a_file_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", LINEAR)
    expected = weights_of(run)
    run.checkpoint_file.unlink()
    run.checkpoint_file.mkdir()
    number = torch.tensor(3.0)
    optimizer = {"state": {0: {"step": number}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    whole = {"state_dict": expected, "left_out": [], "global_step": 7, "optimizer_states": [optimizer]}
    sharded_files.write(whole, run.checkpoint_file, is_first=True)
    part = load_trained(run.directory, "part")
    torch.testing.assert_close(part.weight.data, expected["part.weight"], rtol=0, atol=0)
    assert load_trained(run.directory).net[0].weight.shape == expected["net.0.weight"].shape
    read = sharded_files.read_whole(run.checkpoint_file)
    assert read.pop("state_dict").keys() == whole.pop("state_dict").keys() and read == whole
    only = sharded_files.read_whole(run.checkpoint_file, "part.")
    assert set(only["state_dict"]) == {"part.weight", "part.bias"}
    (run.checkpoint_file / ".metadata").rename(run.checkpoint_file / ".lost")
    with pytest.raises(UserError, match="is damaged"):
        load_trained(run.directory, "part")
