"""The digest of a thinker: the same for the same weights, another for any other weight, adapter or template."""

import copy
from pathlib import Path

import pytest
import torch

from lightning_modules.adapters.lora import (
    LoraSettings,
    add_adapter,
    load_adapter,
    lora_layers,
    merge_adapters,
    save_adapter,
    select_adapters,
)
from lightning_modules.stored_text_states import thinker_digest
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.thinker.tiny import make_language_model, make_speech_encoder, make_tokenizer


@pytest.fixture
def thinker() -> Thinker:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Thinker(make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), make_tokenizer())


def test_it_depends_on_weights_alone_not_on_mode_dtype_or_use(thinker: Thinker) -> None:
    digest = thinker_digest(thinker)
    assert len(digest) == 64
    thinker.eval().requires_grad_(False)
    thinker(0.1 * torch.ones(1, 8000), torch.tensor([8000]), ["Yes."])
    with torch.autocast("cpu", torch.bfloat16):
        assert thinker_digest(copy.deepcopy(thinker)) == digest
    rounded = copy.deepcopy(thinker).bfloat16()
    assert thinker_digest(rounded) == thinker_digest(copy.deepcopy(rounded).float()) != digest


def test_any_weight_changes_it(thinker: Thinker) -> None:
    seen = {thinker_digest(thinker)}
    parameters = dict(thinker.named_parameters())
    for name in list(parameters)[::5]:
        with torch.no_grad():
            parameters[name].view(-1)[-1] += 2**-10
        seen.add(thinker_digest(thinker))
    assert len(seen) == 1 + len(list(parameters)[::5])


def test_template_system_prompt_and_tokenizer_change_it(thinker: Thinker) -> None:
    parts = thinker.speech_encoder, thinker.adaptor, thinker.language_model
    other_template = make_tokenizer()
    other_template.chat_template = "Hello. " + other_template.chat_template
    prompts = {
        "same": Thinker(*parts, make_tokenizer()),
        "system": Thinker(*parts, make_tokenizer(), system_prompt="Be brief."),
        "template": Thinker(*parts, other_template),
        "tokenizer": Thinker(*parts, make_tokenizer(("<|im_start|>", "<|audio|>", "<|more|>"))),
        "padded": Thinker(make_speech_encoder(pad_to_s=6.0), *parts[1:], make_tokenizer()),
    }
    prompts["padded"].speech_encoder.load_state_dict(thinker.speech_encoder.state_dict())
    digests = {name: thinker_digest(one) for name, one in prompts.items()}
    assert digests.pop("same") == thinker_digest(thinker)
    assert len({*digests.values(), thinker_digest(thinker)}) == 5


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_an_adapter_counts_while_it_is_in_use_whatever_its_name(thinker: Thinker) -> None:
    base = thinker_digest(thinker)
    model = thinker.language_model.model
    add_adapter(model, "first", LoraSettings(rank=2, targets=["q_proj", "v_proj"]))
    fresh = thinker_digest(thinker)
    with torch.no_grad():
        for name, value in thinker.named_parameters():
            if "lora_B" in name:
                value += 0.1
    trained = thinker_digest(thinker)
    add_adapter(model, "second", LoraSettings(rank=3, targets=["q_proj"]))
    select_adapters(model, ["first"])
    assert thinker_digest(thinker) == trained, "the second one is loaded, but not in use"
    select_adapters(model, ["second"])
    second = thinker_digest(thinker)
    select_adapters(model, [])
    assert thinker_digest(thinker) == base, "no adapter is in use"
    select_adapters(model, ["first"])
    for _, layer in lora_layers(model):
        if "first" in layer.scaling:
            layer.scaling["first"] *= 2.0
    scaled = thinker_digest(thinker)
    merge_adapters(model, ["first"])
    digests = [base, fresh, trained, second, scaled, thinker_digest(thinker)]
    assert len(set(digests)) == len(digests)


def test_an_adapter_that_was_saved_is_itself_again_under_another_name(thinker: Thinker, tmp_path: Path) -> None:
    base = copy.deepcopy(thinker)
    add_adapter(thinker.language_model.model, "first", LoraSettings(rank=2, targets=["q_proj"]))
    with torch.no_grad():
        next(value for name, value in thinker.named_parameters() if "lora_B" in name).add_(0.1)
    save_adapter(thinker.language_model.model, "first", tmp_path)
    load_adapter(base.language_model.model, "other_name", tmp_path)
    assert thinker_digest(base) == thinker_digest(thinker)


def test_modules_that_an_adapter_trains_in_full_count_while_it_is_in_use(thinker: Thinker, tmp_path: Path) -> None:
    base, model = thinker_digest(thinker), thinker.language_model.causal_lm
    add_adapter(model, "a", LoraSettings(2, modules_to_save=["embed_tokens"]))
    with torch.no_grad():
        model.get_input_embeddings().modules_to_save["a"].weight += 0.1
    adapted = thinker_digest(thinker)
    save_adapter(model, "a", tmp_path)
    select_adapters(model, [])
    assert thinker_digest(thinker) == base != adapted
    load_adapter(model, "b", tmp_path)
    select_adapters(model, ["b"])
    assert thinker_digest(thinker) == adapted
