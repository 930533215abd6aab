"""LoRA on one module: what trains, targets, folders that are read strictly, merging."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lightning_modules.adapters.lora import (
    WEIGHTS_FILE,
    LoraSettings,
    adapter_names,
    add_adapter,
    load_adapter,
    lora_layers,
    merge_adapters,
    save_adapter,
    select_adapters,
)
from lightning_modules.errors import UserError
from tests.lightning_modules.talker.conftest import make_talker, make_text
from tests.lightning_modules.thinker.tiny import make_language_model


class Net(nn.Module):
    """Two named layers inside blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4)}) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["down"](block["up"](x).relu())
        return self.head(x)


def make_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def draw(module: nn.Module, seed: int) -> None:
    """Give LoRA matrices values that change the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("all-linear", ["blocks.0.down", "blocks.0.up", "blocks.1.down", "blocks.1.up", "head"]),
        (["up"], ["blocks.0.up", "blocks.1.up"]),
        (["1.up", "head"], ["blocks.1.up", "head"]),
        (r"blocks\.0\..*", ["blocks.0.down", "blocks.0.up"]),
    ],
)
def test_only_the_targets_get_matrices_and_only_these_train(targets: str | list[str], layers: list[str]) -> None:
    net = make_net()
    add_adapter(net, "a", LoraSettings(rank=2, targets=targets))
    assert sorted(name for name, _ in lora_layers(net)) == layers
    trains = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert len(trains) == 2 * len(layers) and all(".lora_" in name for name in trains)


def test_the_head_of_a_language_model_is_not_among_all_linear() -> None:
    model = make_language_model().causal_lm
    add_adapter(model, "a", LoraSettings(rank=2))
    names = {name.rsplit(".", 1)[-1] for name, _ in lora_layers(model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["up", "sideways"],
            r"\['sideways'\] are no linear .* among \['down', 'head', 'up'\], or all-",
        ),
        (r"blocks\.7\..*", r"blocks.* are no linear layers here"),
        (["p"], r"\['p'\] are no linear layers here"),
        ("(", "no regular expression"),
    ],
)
def test_a_target_that_matches_nothing_is_refused(targets: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_adapter(make_net(), "a", LoraSettings(targets=targets))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"targets": []}, "tar"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoraSettings(**arguments)


def test_a_module_without_linear_layers_is_refused() -> None:
    with pytest.raises(UserError, match="no linear layers"):
        add_adapter(nn.Sequential(nn.ReLU()), "a", LoraSettings())


@settings(max_examples=20, deadline=None)
@given(
    rank=st.integers(1, 6),
    alpha=st.floats(0.5, 20.0),
    seed=st.integers(0, 9),
    targets=st.sampled_from(["all-linear", ("up",)]),
)
def test_save_and_load_give_the_same_outputs(
    tmp_path_factory: pytest.TempPathFactory, rank: int, alpha: float, seed: int, targets: str
) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    net = make_net()
    add_adapter(net, "a", LoraSettings(rank, alpha, targets=targets))
    torch.testing.assert_close(net(X), make_net()(X))
    draw(net, seed)
    save_adapter(net, "a", folder)
    other = make_net()
    load_adapter(other, "b", folder)
    assert torch.equal(other(X), net(X)) and not torch.allclose(net(X), make_net()(X), atol=1e-3)
    assert adapter_names(other) == ["b"]
    merged = make_net()
    load_adapter(merged, "b", folder)
    merge_adapters(merged, ["b"])
    assert not list(lora_layers(merged)) and set(merged.state_dict()) == set(make_net().state_dict())
    torch.testing.assert_close(merged(X), net(X), atol=1e-5, rtol=1e-5)


def test_several_adapters_act_one_at_a_time_together_or_not_at_all(tmp_path: Path) -> None:
    outputs = {}
    for seed, name in enumerate(("a", "b")):
        net = make_net()
        add_adapter(net, name, LoraSettings(2, targets=["up"] if name == "a" else "all-linear"))
        draw(net, seed)
        outputs[name] = net(X)
        save_adapter(net, name, tmp_path / name)
    both = make_net()
    for name in ("a", "b"):
        load_adapter(both, name, tmp_path / name)
    for name in ("a", "b", "a"):
        select_adapters(both, [name])
        torch.testing.assert_close(both(X), outputs[name])
    select_adapters(both, [])
    assert torch.equal(both(X), make_net()(X))
    select_adapters(both, ["a", "b"])
    assert not any(torch.allclose(both(X), one, atol=1e-3) for one in outputs.values())


def test_selection_does_not_change_what_trains() -> None:
    net = make_net()
    add_adapter(net, "a", LoraSettings(2))
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    for names in ([], ["a"], []):
        select_adapters(net, names)
        assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == before


def test_a_loaded_adapter_is_frozen_and_leaves_the_rest_trainable(tmp_path: Path) -> None:
    net = make_net()
    add_adapter(net, "a", LoraSettings(2))
    save_adapter(net, "a", tmp_path)
    other = make_net()
    load_adapter(other, "a", tmp_path)
    assert all(parameter.requires_grad != ("lora_" in name) for name, parameter in other.named_parameters())


def test_missing_unexpected_and_misshapen_weights_are_refused(tmp_path: Path) -> None:
    net = make_net()
    add_adapter(net, "a", LoraSettings(2, targets=["up"]))
    save_adapter(net, "a", tmp_path)
    file = tmp_path / WEIGHTS_FILE
    weights = load_file(file)
    first = sorted(weights)[0]

    save_file({key: value for key, value in weights.items() if key != first}, file)
    with pytest.raises(UserError, match=r"1 weights are missing \(\['blocks.0.up.lora_A.weight'\]\), 0 are unexpected"):
        load_adapter(make_net(), "a", tmp_path)
    save_file({**weights, "base_model.model.other.lora_A.weight": torch.zeros(2, 4)}, file)
    with pytest.raises(UserError, match="0 weights are missing .* 1 are unexpected .*other.lora_A.weight"):
        load_adapter(make_net(), "a", tmp_path)
    save_file({**weights, first: torch.zeros(2, 5)}, file)
    with pytest.raises(UserError, match=r"blocks.0.up.lora_A.weight has the shape \(2, 5\), where \(2, 4\) is needed"):
        load_adapter(make_net(), "a", tmp_path)
    save_file(weights, file)
    wrong = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(wrong, "a", tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="has no adapter_model.safetensors"):
        load_adapter(make_net(), "a", tmp_path)


def test_a_second_adapter_of_one_name_is_refused() -> None:
    net = make_net()
    add_adapter(net, "a", LoraSettings(2))
    with pytest.raises(UserError, match="has an adapter 'a' already"):
        add_adapter(net, "a", LoraSettings(2))


def test_peft_and_transformers_read_a_language_models_folder(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_language_model().causal_lm.eval()
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    add_adapter(model, "mine", LoraSettings(3, targets=r"model\.layers\.1\..*_proj"))
    draw(model, 0)
    save_adapter(model, "mine", tmp_path / "adapter")
    ids = torch.arange(6)[None]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    by_peft = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(by_peft(ids).logits, model(ids).logits)
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()  # finds its base by itself
    torch.testing.assert_close(by_transformers(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", ["ntp", "mtp", "mdm", "set_block"])
def test_talkers_of_all_kinds_train_their_matrices_alone(kind: str) -> None:
    talker = make_talker(kind).train()
    add_adapter(talker, "a", LoraSettings(2))
    draw(talker, 0)
    before = {name: parameter.clone() for name, parameter in talker.named_parameters()}
    optimizer = torch.optim.SGD([one for one in talker.parameters() if one.requires_grad], lr=1.0)
    units = torch.randint(0, 30, (2, 12), generator=torch.Generator().manual_seed(0))
    output = talker(make_text([3, 2]), units, torch.tensor([12, 9]), torch.Generator().manual_seed(0))
    output.loss.backward()
    optimizer.step()
    changed = {name for name, parameter in talker.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and changed == {name for name in before if "lora_" in name}


def test_a_folder_is_checked_against_a_module_without_weights(tmp_path: Path) -> None:
    net = make_net()
    add_adapter(net, "trained", LoraSettings(rank=2))
    save_adapter(net, "trained", tmp_path)
    with torch.device("meta"):
        bare = Net()
        load_adapter(bare, "voice", tmp_path)  # a warning of torch that nothing was copied would be an error here
        with pytest.raises(UserError, match="does not fit"):
            load_adapter(nn.Sequential(Net()), "voice", tmp_path)
    assert adapter_names(bare) == ["voice"] and all(one.is_meta for one in bare.parameters())
