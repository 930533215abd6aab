"""The language model: cached equals full, LoRA trains its own matrices only, checkpoints are loaded."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from lightning_modules.thinker.language_model import LanguageModel
from tests.lightning_modules.thinker.tiny import make_language_model


@pytest.fixture
def embeddings() -> torch.Tensor:
    """(2, 7, 32) input embeddings."""
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The directory of a saved tiny Qwen3."""
    torch.manual_seed(0)
    make_language_model().save_pretrained(tmp_path / "qwen3")
    return tmp_path / "qwen3"


def test_hidden_states_and_logits_are_those_of_transformers(embeddings: torch.Tensor) -> None:
    model = make_language_model().eval()
    expected = model.causal_lm(inputs_embeds=embeddings, output_hidden_states=True)
    hidden = model(embeddings)
    torch.testing.assert_close(hidden, expected.hidden_states[-1])
    torch.testing.assert_close(model.logits(hidden), expected.logits)


def test_cached_equals_full(embeddings: torch.Tensor) -> None:
    model = make_language_model().eval()
    cache = model.new_cache()
    pieces = [model(piece, cache) for piece in embeddings.split([3, 1, 2, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(embeddings), atol=1e-5, rtol=1e-5)


def test_from_pretrained_loads_a_saved_qwen3(saved: Path, embeddings: torch.Tensor) -> None:
    model = LanguageModel.from_pretrained(saved).eval()
    assert isinstance(model.causal_lm, Qwen3ForCausalLM)
    expected = AutoModelForCausalLM.from_pretrained(saved).eval()(inputs_embeds=embeddings).logits
    torch.testing.assert_close(model.logits(model(embeddings)), expected)
    assert (model.hidden_size, model.embedding_size, model.vocab_size) == (32, 32, 304)
    half = LanguageModel.from_pretrained(saved, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_lora_trains_its_own_matrices_only(saved: Path, embeddings: torch.Tensor) -> None:
    model = LanguageModel.from_pretrained(saved, lora_rank=4, lora_targets=("q_proj", "down_proj"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained} == {"q_proj", "down_proj"}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    for _ in range(2):  # lora_A has no gradient until lora_B has left zero
        optimizer.zero_grad()
        model.logits(model(embeddings)).square().mean().backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == trained


def test_lora_changes_nothing_at_first_then_saves_and_merges(
    saved: Path, tmp_path: Path, embeddings: torch.Tensor
) -> None:
    plain = LanguageModel.from_pretrained(saved).eval()
    model = LanguageModel.from_pretrained(saved, lora_rank=4).eval()
    torch.testing.assert_close(model(embeddings), plain(embeddings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted = model(embeddings)
    assert not torch.allclose(adapted, plain(embeddings), atol=1e-2)
    model.save_pretrained(tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_config.json").is_file()
    by_peft = PeftModel.from_pretrained(plain.causal_lm, str(tmp_path / "lora")).eval()
    torch.testing.assert_close(by_peft(inputs_embeds=embeddings).logits, model.logits(adapted))
    by_transformers = LanguageModel.from_pretrained(tmp_path / "lora").eval()
    torch.testing.assert_close(by_transformers(embeddings), adapted)
    model.merge_lora()
    assert not any("lora_" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(model(embeddings), adapted, atol=1e-4, rtol=1e-4)
    model.merge_lora()


def test_wrong_lora_settings_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"lora_targets: \['query'\] are no linear layers here; choose among"):
        LanguageModel.from_pretrained(saved, lora_rank=4, lora_targets=("query",))
    model = LanguageModel.from_pretrained(saved, lora_rank=4)
    with pytest.raises(ValueError, match="has LoRA matrices already"):
        model.add_lora(4)


def test_a_wrong_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="language model: there is no directory '/no/such/folder'"):
        LanguageModel.from_pretrained("/no/such/folder")
    with pytest.raises(FileNotFoundError, match="language model: nothing could be loaded"):
        LanguageModel.from_pretrained(tmp_path)
