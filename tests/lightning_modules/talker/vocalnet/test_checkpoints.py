"""Import of checkpoints in the released format: every form of file, nothing but what is needed, errors with names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.vocalnet.sizes import VocalNetSizes
from lightning_modules.talker.vocalnet.vocalnet_talker import VocalNetTalker
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.language_model import LanguageModel
from tests.lightning_modules.talker.vocalnet.tiny import (
    END_OF_TEXT_ID,
    NUM_TEXT_TOKENS,
    draw_weights,
    make_config,
    write_checkpoint,
    write_files,
)


@pytest.mark.parametrize("form", ["single", "sharded", "bin"])
def test_weights_are_read_from_every_form_of_file(tmp_path: Path, form: str) -> None:
    weights = write_checkpoint(tmp_path, seed=1, form=form)
    talker = VocalNetTalker.from_checkpoint(tmp_path, END_OF_TEXT_ID)
    state = talker.state_dict()
    assert torch.equal(state.pop("end_of_text"), weights["model.embed_tokens.weight"][END_OF_TEXT_ID])
    expected = {name: value for name, value in weights.items() if name.startswith("speech_generator.")}
    assert {f"speech_generator.{name}" for name in state} == set(expected)
    for name, value in state.items():
        assert torch.equal(value, expected[f"speech_generator.{name}"]), name
    assert talker.supported_steps == (5, 3, 4, 8, 15)
    assert talker.block_size == 15 and talker.vocabulary.eos_id == 22


def test_the_released_sizes_have_the_released_numbers_of_parameters() -> None:
    """Counted from the shapes of the released keys: embedding, 6 + 5 layers, 6 heads and norms."""
    for hidden, ffn, heads in ((2048, 8192, 32), (3584, 14336, 32), (4096, 16384, 32)):
        with torch.device("meta"):
            talker = VocalNetTalker(VocalNetSizes(hidden, ffn, heads))
        layer = 4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden
        expected = 6565 * hidden + 11 * layer + 6 * (6565 * (hidden + 1) + hidden)
        assert sum(one.numel() for one in talker.parameters()) == expected + hidden, "and the end of the text"
        assert talker.vocabulary.size == 6565


def test_it_is_built_from_its_configuration_alone_on_the_meta_device(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(make_config()))
    with torch.device("meta"):
        talker = VocalNetTalker.from_checkpoint(tmp_path, END_OF_TEXT_ID)
    assert all(one.is_meta for one in talker.parameters())
    talker.check(Decoding("it", 3))
    talker.reset_parameters(torch.Generator())
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor pytorch_model.bin"):
        VocalNetTalker.from_checkpoint(tmp_path, END_OF_TEXT_ID)


@pytest.mark.parametrize("form", ["single", "sharded", "bin"])
def test_every_missing_and_unexpected_weight_is_named(tmp_path: Path, form: str) -> None:
    config = make_config()
    weights = draw_weights(config, 0)
    del weights["speech_generator.norm.weight"], weights["speech_generator.mtp_layers.4.norm_final.weight"]
    weights["speech_generator.extra.weight"] = torch.zeros(2)
    write_files(tmp_path, config, weights, form)
    with pytest.raises(UserError) as error:
        VocalNetTalker.from_checkpoint(tmp_path, END_OF_TEXT_ID)
    for name in ("norm.weight", "mtp_layers.4.norm_final.weight", "extra.weight"):
        assert f"'speech_generator.{name}'" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speech_generator_type": "ar"}, "speech_generator_type is 'ar'; this talker is that of 'ar_mtp'"),
        ({"speech_eos_token_id": 20}, "'speech_eos_token_id': 20"),
        ({"special_tokens": 5}, "'special_tokens': 5"),
        ({"mtp_num": None}, r"has no \['mtp_num'\]"),
        ({"decoder_num_heads": 3}, "hidden_size is 16, which 2 x num_heads"),
        ({"decoder_ffn_dim": 32}, r"do not fit its config.json: .*mlp.*has the shape .*, where .* is needed"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = make_config()
    weights = draw_weights(config, 0)
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    write_files(tmp_path, config, weights)
    with pytest.raises(UserError, match=message):
        VocalNetTalker.from_checkpoint(tmp_path, END_OF_TEXT_ID)


@pytest.mark.parametrize("form", ["single", "bin"])
@pytest.mark.parametrize("end_of_text_id", [NUM_TEXT_TOKENS, 128009, -1])
def test_a_token_that_the_model_does_not_have_is_refused(tmp_path: Path, form: str, end_of_text_id: int) -> None:
    write_checkpoint(tmp_path, form=form)
    with pytest.raises(UserError, match=f"end_of_text_id is {end_of_text_id}"):
        VocalNetTalker.from_checkpoint(tmp_path, end_of_text_id)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no .*config.json"):
        VocalNetTalker.from_checkpoint(tmp_path / "none", END_OF_TEXT_ID)
    write_checkpoint(tmp_path, form="sharded")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks .*model-00002-of-00002.safetensors"):
        VocalNetTalker.from_checkpoint(tmp_path, END_OF_TEXT_ID)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_configuration_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="copy the checkpoint again"):
        VocalNetTalker.from_checkpoint(tmp_path, END_OF_TEXT_ID)


def test_copied_weights_leave_extra_layers_that_the_source_lacks(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, seed=1)
    source = VocalNetTalker.from_checkpoint(tmp_path, END_OF_TEXT_ID)
    copied = VocalNetTalker(source.sizes)
    copied.copy_weights(source)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in copied.state_dict().items())


@torch.no_grad()
def test_language_model_adaptor_and_talker_come_out_of_one_directory(tmp_path: Path) -> None:
    """As the README says: `model_type` in config.json names the language model's own kind, and all else stays."""
    own = make_config()
    llama = LlamaConfig(
        vocab_size=NUM_TEXT_TOKENS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        architectures=["LlamaForCausalLM"], bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    reference = LlamaForCausalLM(llama).eval()
    weights = {**draw_weights(own, 0), **{name: value.clone() for name, value in reference.state_dict().items()}}
    weights["model.speech_encoder.conv1.weight"] = torch.zeros(2, 2)
    write_files(tmp_path, {**own, **llama.to_diff_dict(), "model_type": "llama"}, weights, "sharded")
    language_model = LanguageModel.from_pretrained(tmp_path)
    token_ids = torch.tensor([[1, 4, 2]])
    logits = language_model.logits(language_model(language_model.embed(token_ids)))
    torch.testing.assert_close(logits, reference(token_ids).logits)
    assert Adaptor.from_vocalnet(tmp_path).output_size == language_model.embedding_size
    talker = VocalNetTalker.from_checkpoint(tmp_path, END_OF_TEXT_ID)
    assert torch.equal(talker.end_of_text, language_model.embed(torch.tensor(END_OF_TEXT_ID)))
