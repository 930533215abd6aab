"""Language model: any causal LM of transformers, from a configuration or pretrained, with optional LoRA."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel, Qwen3Config

from lightning_modules.adapters.lora import LoraSettings, adapter_names, add_adapter, merge_adapters, save_adapter
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_divisible
from lightning_modules.pretrained.loading import (
    check_attention,
    dtype_from_name,
    keep_layer_inputs_only,
    load_pretrained,
    read_config,
)
from lightning_modules.pretrained.meta_device import is_on_meta
from lightning_modules.thinker.initialization import initialize_by_fan_in
from lightning_modules.thinker.logits import score_in_pieces
from lightning_modules.thinker.writing.caches import FixedCache

OWN_ADAPTER = "default"  # peft's name for an adapter that has none
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LanguageModel(nn.Module):
    """A causal LM as three maps: token to embedding, embeddings to hidden states, hidden state to logits.

    Args:
        model: A causal LM of transformers, with LoRA layers inside or without.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def from_config(
        cls,
        vocab_size: int,
        width: int = 192,
        num_layers: int = 4,
        num_heads: int = 3,
        num_key_value_heads: int | None = None,
        feed_forward_width: int = 512,
        max_positions: int = 2048,
        tie_embeddings: bool = True,
        attention: str = "sdpa",
    ) -> "LanguageModel":
        """Build an untrained Qwen3.

        Args:
            vocab_size: At least the size of the tokenizer.
            width: Hidden size D.
            num_layers: Transformer layers.
            num_heads: Attention heads; twice their number divides ``width``.
            num_key_value_heads: Heads of keys and values, which divide ``num_heads``; None for as many.
            feed_forward_width: Inner size of the feed-forward layers.
            max_positions: Longest sequence, prompt and reply, in tokens.
            tie_embeddings: Whether input embedding and output projection share their weights.
            attention: Implementation of attention in transformers, "sdpa", "eager" or another of its names.

        Raises:
            UserError: If a number is below 1, or the heads do not divide the width or each other.
        """
        require_at_least(
            1,
            vocab_size=vocab_size,
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            feed_forward_width=feed_forward_width,
            max_positions=max_positions,
        )
        # Rotary positions turn pairs of dimensions of a head.
        require_divisible("width", width, "2 x num_heads =", 2 * num_heads)
        require_divisible("num_heads", num_heads, "num_key_value_heads", num_key_value_heads or num_heads)
        check_attention(attention)
        config = Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=width // num_heads,
            intermediate_size=feed_forward_width,
            max_position_embeddings=max_positions,
            tie_word_embeddings=tie_embeddings,
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        outputs = [linear for layer in model.model.layers for linear in (layer.self_attn.o_proj, layer.mlp.down_proj)]
        initialize_by_fan_in(model.model, residual_outputs=outputs)
        nn.init.normal_(model.get_input_embeddings().weight, std=width**-0.5)
        return cls(model)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: str = "float32",
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
        lora_targets: str | Sequence[str] = LORA_TARGETS,
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
    ) -> "LanguageModel":
        """Load a pretrained causal LM, frozen under trainable LoRA weights if ``lora_rank`` is given.

        Args:
            path: A directory written by ``save_pretrained``, or a published name ("Qwen/Qwen3-8B").
            dtype: Dtype of the weights, "float32", "bfloat16" or "float16".
            lora_rank: Rank of the LoRA matrices; None trains all weights instead.
            lora_alpha: LoRA scale, None for twice the rank.
            lora_dropout: Dropout before the LoRA matrices.
            lora_targets: Layers that get LoRA matrices; see :class:`LoraSettings`.
            attention: Implementation of attention in transformers.
            gradient_checkpointing: Keep only the input of each layer in training, and compute the layer again in the
                backward pass.

        Raises:
            FileNotFoundError: If nothing can be loaded from ``path``.
            UserError: If a LoRA target is no layer of the model, or a number is out of range.
        """
        torch_dtype = dtype_from_name(dtype)
        check_attention(attention)
        settings = {"dtype": torch_dtype, "attn_implementation": attention}
        if is_on_meta():
            config = read_config(_base_of(path), "language model")
            model = AutoModelForCausalLM.from_config(config, **settings)
        else:
            model = load_pretrained(
                lambda name: AutoModelForCausalLM.from_pretrained(name, **settings), path, "language model"
            )
        if gradient_checkpointing:
            keep_layer_inputs_only(model)
        language_model = cls(model)
        if lora_rank is not None:
            language_model.add_lora(lora_rank, lora_alpha, lora_dropout, lora_targets)
        return language_model

    def add_lora(
        self,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str | Sequence[str] = LORA_TARGETS,
    ) -> None:
        """Freeze the model and put trainable LoRA matrices beside its linear layers.

        Reference: arXiv 2106.09685.

        Args:
            rank: Rank of the matrices.
            alpha: Scale, None for twice the rank.
            dropout: Dropout before the matrices.
            targets: Layers that get them; see :class:`LoraSettings`.

        Raises:
            UserError: If a target is no layer of the model, the model has LoRA already, or a number is out of range.
        """
        settings = LoraSettings(rank, alpha, dropout, targets)
        if adapter_names(self.model):
            raise UserError("the language model has LoRA matrices already; merge them first with merge_lora().")
        add_adapter(self.model, OWN_ADAPTER, settings)

    def merge_lora(self) -> None:
        """Add the LoRA matrices to the weights beside them; without LoRA, do nothing."""
        if adapter_names(self.model):
            merge_adapters(self.model, adapter_names(self.model))

    def save_pretrained(self, path: str | Path) -> None:
        """Write the LoRA matrices alone if there are any, else the whole model, as peft and transformers do."""
        if adapter_names(self.model):
            save_adapter(self.model, OWN_ADAPTER, Path(path))
        else:
            self.model.save_pretrained(str(path))

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The causal LM, with LoRA layers inside if there are any."""
        return self.model

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""
        return int(self.causal_lm.config.hidden_size)

    @property
    def embedding_size(self) -> int:
        """Width of an input embedding."""
        return self._input_embedding.embedding_dim

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding."""
        return self._input_embedding.num_embeddings

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embeddings and the output projection."""
        return self._input_embedding.weight.dtype

    @property
    def max_positions(self) -> int | None:
        """Longest sequence, prompt and reply, in tokens; None if the model names no limit."""
        return getattr(self.causal_lm.config, "max_position_embeddings", None)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids at which the generation settings that came with the model stop."""
        settings = self.causal_lm.generation_config
        found = None if settings is None else settings.eos_token_id
        return () if found is None else tuple(found) if isinstance(found, list | tuple) else (int(found),)

    @property
    def _input_embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.causal_lm.get_input_embeddings())

    def new_cache(self) -> Cache:
        """Make an empty cache of keys and values for ``forward``."""
        return DynamicCache(config=self.causal_lm.config)

    def new_fixed_cache(self, num_positions: int) -> Cache:
        """Make an empty cache of keys and values for so many positions, which lives in buffers of that size."""
        return FixedCache(config=self.causal_lm.config, max_cache_len=num_positions)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Look up input embeddings: ``(...) int64`` to ``(..., embedding_size)``."""
        return self._input_embedding(token_ids)

    def forward(self, embeddings: Tensor, cache: Cache | None = None) -> Tensor:
        """Compute the last hidden states, after the final norm.

        Args:
            embeddings: ``(B, L, embedding_size)``, rows padded on the right, where causal attention hides the padding.
            cache: Keys and values of earlier positions, extended in place; None for a whole sequence.

        Returns:
            ``(B, L, hidden_size)``.
        """
        backbone = self.causal_lm.base_model
        outputs = backbone(inputs_embeds=embeddings, past_key_values=cache, use_cache=cache is not None)
        return outputs.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the next token: ``(..., hidden_size)`` to ``(..., vocab_size)``."""
        return self.causal_lm.get_output_embeddings()(hidden)

    def score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Score the next tokens that came, in pieces whose logits fit into little memory; see :func:`score_in_pieces`.

        Args:
            hidden: ``(n, hidden_size)``.
            targets: Token ids, ``(n,) int64``.

        Returns:
            Sum of the cross-entropies ``() float32``, and whether each token is the most probable one, ``(n,) bool``.
        """
        return score_in_pieces(self.causal_lm.get_output_embeddings(), hidden, targets, self.vocab_size)


def _base_of(path: str | Path) -> str | Path:
    """Give the path of the model that the LoRA matrices in ``path`` belong to; ``path`` itself if it holds a model."""
    if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        return str(PeftConfig.from_pretrained(str(path)).base_model_name_or_path)
    return path
