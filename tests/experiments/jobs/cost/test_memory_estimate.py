"""The memory of a stage, computed without weights, against what a real step of a small model holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.engine.runs import read_json
from experiments.jobs.cost.full_size_losses import BatchSize, talker_loss, thinker_loss
from experiments.jobs.cost.memory_estimate import MemoryEstimate, activation_bytes, sizes_of
from experiments.jobs.cost.saved_tensors import saved_bytes
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.network import attention
from lightning_modules.thinker.objective import ThinkerObjective
from tests.experiments.paper_inputs import tiny_overrides, write_inputs
from tests.lightning_modules.talker.conftest import build_talker
from tests.lightning_modules.test_speech_llm import fit, make_thinker

KINDS = ("ntp", "mtp", "mdm", "set_block")
BATCH = BatchSize(num_rows=3, num_units=43, num_text_tokens=7, num_prompt_tokens=5, query_s=1.0)
TOLERANCE = 0.05


def make_llm(*kinds: str, **settings: Any) -> SpeechLLM:
    thinker = make_thinker()
    return SpeechLLM(thinker, {kind: build_talker(kind, 32, 32) for kind in kinds}, **settings)


def make_without_weights(*kinds: str, **settings: Any) -> SpeechLLM:
    with torch.device("meta"):
        return make_llm(*kinds, **settings)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU attend in training by the fused kernel, as other devices do."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: attention.Attention) -> Tensor:
        if mask is not None and not isinstance(mask, Tensor):
            return mask(query, key, value)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def by_mask(self: attention.CausalContextAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, self.mask)

    monkeypatch.setattr("lightning_modules.talker.network.backbone.attend", attend)
    monkeypatch.setattr(attention.CausalContextAttention, "__call__", by_mask)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_parameters_gradients_and_optimizer_are_exact() -> None:
    llm = make_llm("ntp", "mdm", learning_rate=1e-3)
    (optimizer,) = fit(llm, 2).optimizers
    sizes = sizes_of(llm, {})
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert sum(size.optimizer_bytes for size in sizes.values()) == held
    trainable = [one for one in llm.parameters() if one.requires_grad]
    assert sum(size.trainable_bytes for size in sizes.values()) == sum(one.nbytes for one in trainable)
    assert sum(size.frozen_bytes for size in sizes.values()) == sum(one.nbytes for one in llm.thinker.parameters())
    assert sizes == sizes_of(make_without_weights("ntp", "mdm"), {})


@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_a_talker_are_those_of_a_real_step(kind: str, fused: None) -> None:
    llm = make_llm(kind)
    weights = [*llm.parameters(), *llm.buffers()]
    real = saved_bytes(lambda: talker_loss(llm, BATCH), weights)
    assert activation_bytes(make_without_weights(kind), BATCH) == pytest.approx(real, rel=TOLERANCE)


def test_activations_of_the_thinker_are_those_of_a_real_step() -> None:
    settings = {"thinker_objective": ThinkerObjective()}
    llm = make_llm(**settings)
    weights = [*llm.parameters(), *llm.buffers()]
    real = saved_bytes(lambda: thinker_loss(llm, BATCH), weights)
    assert activation_bytes(make_without_weights(**settings), BATCH) == pytest.approx(real, rel=TOLERANCE)


def test_a_storage_counts_once_and_weights_do_not() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    values = torch.ones(3, 4, requires_grad=True)

    def forward() -> Tensor:
        product = values @ weight  # saves both
        return (product * product[:, :]).sum()  # saves one storage of 48 bytes twice

    assert saved_bytes(forward, [weight]) == 2 * 48


def estimate(folder: Path, extra: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    name = "one_gpu_1b"
    if not (folder / "codec").exists():
        settings["overrides"] = write_inputs(name, folder, False)
        (folder / "overrides.txt").write_text("\n".join(settings["overrides"]))
    settings["overrides"] = [
        *(folder / "overrides.txt").read_text().splitlines(),
        *tiny_overrides(name),
        *(extra or []),
    ]
    MemoryEstimate(f"paper/{name}", **settings).run(folder)
    return read_json(folder / "memory.json")


def test_each_training_stage_is_estimated_and_labelled(tmp_path: Path) -> None:
    found = estimate(tmp_path)
    assert found.keys() == {"thinker", "talkers", "distilled_talkers"}
    for stage in found.values():
        assert stage["label"] == "estimate"
        parts = stage["parts"].values()
        trainable = sum(part["trainable_bytes"] for part in parts)
        assert stage["gb"]["gradients"] == trainable / 1e9
        assert stage["gb"]["parameters"] == (trainable + sum(part["frozen_bytes"] for part in parts)) / 1e9
        assert stage["batch_of_a_device"]["num_units"] == 1000 and stage["batch_of_a_device"]["num_rows"] == 4
    talker = found["talkers"]["parts"]["talkers.mdm"]
    teacher = found["distilled_talkers"]["parts"]["teachers.mdm"]
    assert teacher["num_frozen"] == talker["num_trainable"] and teacher["num_trainable"] == 0
    table = (tmp_path / "memory.md").read_text()
    assert "### distilled_talkers" in table and f"| talkers.mdm | {talker['num_trainable']:,} | 0 |" in table
    shorter = estimate(tmp_path, num_units=500)
    split = estimate(tmp_path, num_shards=4)
    for name, stage in found.items():
        if name != "thinker":
            assert shorter[name]["gb"]["activations"] < 0.6 * stage["gb"]["activations"]
        for what in ("parameters", "gradients", "optimizer"):
            assert split[name]["gb"][what] == pytest.approx(stage["gb"][what] / 4)


def test_what_cannot_be_computed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no stage trains a SpeechLLM"):
        MemoryEstimate("quickstart", ["stages.talkers=null", *(f"stages.{one}=null" for one in (
            "thinker_pretraining", "thinker", "text_states", "first_talker", "distilled_talkers", "comparison",
        ))]).run(tmp_path)  # fmt: skip
    with pytest.raises(UserError, match="no max_examples and max_tokens; set num_rows and num_units"):
        estimate(tmp_path, ["stages.thinker.datamodule.init_args.max_tokens=null"])
    with pytest.raises(UserError, match="for AdamW only"):
        estimate(tmp_path, ["stages.talkers.module.init_args.muon=true"])
    with pytest.raises(UserError, match="num_shards is 0"):
        MemoryEstimate("quickstart", num_shards=0)
