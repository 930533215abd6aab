"""Modules that an adapter trains in full, beside its matrices: copies that are chosen, saved and merged with it."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lightning_modules.adapters.lora import (
    LoraSettings,
    add_adapter,
    load_adapter,
    merge_adapters,
    save_adapter,
    select_adapters,
)
from lightning_modules.errors import UserError
from lightning_modules.training.muon_adamw import split_hidden_matrices
from tests.lightning_modules.talker.conftest import make_talker, make_text, next_token_logits
from tests.lightning_modules.thinker.tiny import make_language_model

SETTINGS = LoraSettings(2, modules_to_save=["embed_tokens", "head"])
TEXT, TOKENS = make_text([5]), torch.arange(16)[None] % 7


@torch.no_grad()
def logits(talker: nn.Module) -> Tensor:
    return next_token_logits(talker, TEXT, TOKENS)  # type: ignore[arg-type]


def draw(module: nn.Module) -> None:
    """Change all that trains."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_the_copies_train_in_full_and_the_base_is_left_as_it_was() -> None:
    talker = make_talker("ntp")
    base = logits(talker)
    add_adapter(talker, "a", SETTINGS)
    in_full = {name for name, one in talker.named_parameters() if one.requires_grad and ".lora_" not in name}
    assert in_full == {"embed_tokens.modules_to_save.a.weight", "head.modules_to_save.a.weight"}
    torch.testing.assert_close(logits(talker), base, rtol=0, atol=0)
    draw(talker)
    assert (logits(talker) - base).abs().max() > 0.1
    select_adapters(talker, [])
    torch.testing.assert_close(logits(talker), base, rtol=0, atol=0)
    assert {name for name, one in talker.named_parameters() if one.requires_grad and ".lora_" not in name} == in_full


def test_saved_loaded_and_merged_they_give_the_same_logits(tmp_path: Path) -> None:
    trained = make_talker("ntp")
    add_adapter(trained, "a", SETTINGS)
    draw(trained)
    save_adapter(trained, "a", tmp_path)
    loaded = make_talker("ntp")
    load_adapter(loaded, "b", tmp_path)
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=0, atol=0)
    names = set(make_talker("ntp").state_dict())
    merge_adapters(loaded, ["b"])
    assert set(loaded.state_dict()) == names
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=1e-3, atol=1e-4)


def test_merging_nothing_gives_the_base_back(tmp_path: Path) -> None:
    talker = make_talker("ntp")
    base = logits(talker)
    add_adapter(talker, "a", SETTINGS)
    draw(talker)
    merge_adapters(talker, [])
    torch.testing.assert_close(logits(talker), base, rtol=0, atol=0)


def test_peft_alone_reads_a_language_model_with_tied_embeddings(tmp_path: Path) -> None:
    language_model = make_language_model()
    model = language_model.causal_lm
    model.save_pretrained(tmp_path / "base")
    add_adapter(model, "a", LoraSettings(2, modules_to_save=["embed_tokens"]))
    draw(model)
    save_adapter(model, "a", tmp_path / "adapter")
    ids = torch.arange(6)[None]
    expected = model(ids).logits
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(by_peft.eval()(ids).logits, expected)
    merge_adapters(model, ["a"])
    assert model.lm_head.weight is model.get_input_embeddings().weight
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-3, atol=1e-4)
    model.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits, model(ids).logits)


def test_each_of_several_adapters_has_a_head_that_is_tied_to_its_embedding(tmp_path: Path) -> None:
    model = make_language_model().causal_lm
    served = copy.deepcopy(model)
    add_adapter(model, "a", LoraSettings(2, modules_to_save=["embed_tokens"]))
    draw(model)
    save_adapter(model, "a", tmp_path)
    ids = torch.arange(6)[None]
    expected = model(ids).logits
    base = served(ids).logits
    for name in ("first", "second"):
        load_adapter(served, name, tmp_path)
    for names, logits_of_names in ((["second"], expected), ([], base), (["first"], expected)):
        select_adapters(served, names)
        torch.testing.assert_close(served(ids).logits, logits_of_names)
    copies = served.get_input_embeddings().modules_to_save, served.lm_head.modules_to_save
    assert all(copies[0][name].weight is copies[1][name].weight for name in ("first", "second"))


def test_a_head_that_trains_in_full_is_not_a_hidden_matrix() -> None:
    talker = make_talker("ntp")
    add_adapter(talker, "a", SETTINGS)
    _, others = split_hidden_matrices(talker)
    head = talker.get_parameter("head.modules_to_save.a.weight")
    assert any(one is head for one in others)


def test_an_adapter_of_copies_alone_has_no_matrices(tmp_path: Path) -> None:
    trained = make_talker("ntp")
    add_adapter(trained, "a", LoraSettings(targets=(), modules_to_save=["head"]))
    assert [name for name, one in trained.named_parameters() if one.requires_grad] == ["head.modules_to_save.a.weight"]
    draw(trained)
    save_adapter(trained, "a", tmp_path)
    loaded, base = make_talker("ntp"), logits(make_talker("ntp"))
    load_adapter(loaded, "b", tmp_path)
    assert torch.equal(logits(loaded), logits(trained)) and not torch.equal(logits(loaded), base)
    merge_adapters(loaded, [])
    assert torch.equal(logits(loaded), base)


def test_an_unknown_module_is_refused() -> None:
    with pytest.raises(UserError, match=r"there are no \['embedings'\] here; choose among .*'embed_tokens'"):
        add_adapter(make_talker("ntp"), "a", LoraSettings(2, modules_to_save=["embedings"]))
