"""Writes tiny checkpoints with random weights in the format of the released VocalNet models."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

END_OF_TEXT_ID, NUM_TEXT_TOKENS, AUDIO_WIDTH = 3, 7, 6
NEVER = -1e4


def make_config(hidden_size: int = 16, num_codes: int = 20, audio_width: int = AUDIO_WIDTH) -> dict[str, Any]:
    """Give a `config.json` with the keys of the released ones."""
    return {
        "model_type": "omni_speech2s_llama",
        "hidden_size": hidden_size,
        "vocab_size": NUM_TEXT_TOKENS,
        "speech_encoder_ds_rate": 5,
        "speech_encoder_hidden_size": audio_width,
        "speech_generator_type": "ar_mtp",
        "llm_hidden_size": hidden_size,
        "decoder_hidden_size": hidden_size,
        "decoder_ffn_dim": 24,
        "decoder_num_heads": 2,
        "decoder_dropout": 0.1,
        "decoder_num_layers": 4,
        "encoder_num_layers": 2,
        "unit_vocab_size": num_codes,
        "max_speech_tokens": 4096,
        "max_seq_length": 8192,
        "special_tokens": 4,
        "speech_bos_token_id": num_codes,
        "speech_sos_token_id": num_codes + 1,
        "speech_eos_token_id": num_codes + 2,
        "speech_padding_token_id": num_codes + 3,
        "speech_max_position_embeddings": 2048,
        "txt_token_num": 5,
        "speech_token_num": 15,
        "mtp_num": 5,
    }


def talker_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name the weights of a speech generator, as the released checkpoints do."""
    width, ffn_width = config["llm_hidden_size"], config["decoder_ffn_dim"]
    num_tokens = config["unit_vocab_size"] + config["special_tokens"]
    layer: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{one}_proj.weight": (width, width) for one in "qkvo"},
        "mlp.gate_proj.weight": (ffn_width, width),
        "mlp.up_proj.weight": (ffn_width, width),
        "mlp.down_proj.weight": (width, ffn_width),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    head: dict[str, tuple[int, ...]] = {"output_proj.weight": (num_tokens, width), "output_proj.bias": (num_tokens,)}
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (num_tokens, width), "norm.weight": (width,), **head}
    stacks = {
        "encode_layers.{}.": (config["encoder_num_layers"], layer),
        "decode_layers.{}.": (config["decoder_num_layers"], layer),
        "mtp_layers.{}.decoder_layer.": (config["mtp_num"], layer),
        "mtp_layers.{}.": (config["mtp_num"], {"norm_final.weight": (width,), **head}),
    }
    for beginning, (num_layers, of_layer) in stacks.items():
        for index in range(num_layers):
            shapes |= {beginning.format(index) + name: shape for name, shape in of_layer.items()}
    return {f"speech_generator.{name}": shape for name, shape in shapes.items()}


def other_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name the adaptor's weights, the text embeddings, and one that no part of a talker reads."""
    width = config["hidden_size"]
    return {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.layers.0.self_attn.q_proj.weight": (width, width),
        "model.speech_projector.linear1.weight": (2048, config["speech_encoder_hidden_size"] * 5),
        "model.speech_projector.linear1.bias": (2048,),
        "model.speech_projector.linear2.weight": (width, 2048),
        "model.speech_projector.linear2.bias": (width,),
    }


def draw_weights(config: dict[str, Any], seed: int, eos_bias: float = 0.0) -> dict[str, Tensor]:
    """Draw weights with which speech varies; special tokens other than the end of speech are never likely."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted({**talker_shapes(config), **other_shapes(config)}.items()):
        drawn = torch.randn(shape, generator=generator)
        if "norm" in name:
            drawn = 1.0 + 0.2 * drawn
        elif len(shape) == 2 and "embed" not in name:
            drawn = drawn / shape[1] ** 0.5
        elif name.endswith("output_proj.bias"):
            drawn = 0.3 * drawn
            drawn[config["unit_vocab_size"] :] = NEVER
            drawn[config["speech_eos_token_id"]] = eos_bias
        weights[name] = drawn
    return weights


def write_checkpoint(
    path: Path, seed: int = 0, eos_bias: float = 0.0, form: str = "single", **sizes: int
) -> dict[str, Tensor]:
    """Write a checkpoint and give its weights.

    Args:
        path: Where to.
        seed: Of the weights.
        eos_bias: How likely the end of speech is.
        form: `single` or `sharded` safetensors, or `bin` for what torch pickles.
        sizes: Arguments of :func:`make_config`.
    """
    config = make_config(**sizes)
    weights = draw_weights(config, seed, eos_bias)
    write_files(path, config, weights, form)
    return weights


def write_files(path: Path, config: dict[str, Any], weights: dict[str, Tensor], form: str = "single") -> None:
    """Write configuration and weights; see :func:`write_checkpoint`."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if form == "bin":
        torch.save(weights, path / "pytorch_model.bin")
    elif form == "single":
        save_file(weights, path / "model.safetensors")
    else:
        names = sorted(weights)
        shards = [f"model-0000{1 + index * 2 // len(names)}-of-00002.safetensors" for index in range(len(names))]
        of_name = dict(zip(names, shards, strict=True))
        for file in set(of_name.values()):
            save_file({name: weights[name] for name in names if of_name[name] == file}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of_name}))
