"""What NeuCodec and X-Codec2 have in common: one FSQ codebook at 50 Hz, read off the waveform and Wav2Vec2-BERT."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel

from lightning_modules.acoustics.kaldi_log_mel import SAMPLE_RATE, KaldiLogMel
from lightning_modules.codec.base import split_rows
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.pretrained.loading import check_attention, dtype_from_name, load_pretrained, read_config
from lightning_modules.pretrained.meta_device import is_on_meta
from lightning_modules.token_format import TokenFormat

# Wav2Vec2-BERT reads pairs of frames.
STACKED_FRAMES = 2


class TransformersCodec(nn.Module, ABC):
    """A codec whose model is a class of transformers.

    Rows are encoded one by one. Padding a row to the length of another one changes its tokens in these models: the
    acoustic encoder sees the padding, and NeuCodec's mask for codes counts 1.5 times the tokens that there are.

    Args:
        model: The model, with its encoder.

    Raises:
        UserError: If it does not take speech at 16 kHz.
    """

    name: ClassVar[str]
    model_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PreTrainedConfig]]
    # whole tokens of speech that the model's feature extractor needs
    min_tokens: ClassVar[int]

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model.eval()
        self.log_mel = KaldiLogMel()
        self.sample_rate = self.input_rate(model.config)
        if self.sample_rate != SAMPLE_RATE:
            raise UserError(f"{self.name} takes speech at {self.sample_rate} Hz; only {SAMPLE_RATE} Hz is supported")
        self.hop_samples = math.prod(model.config.downsampling_ratios)
        size = math.prod(model.config.quantization_levels)
        frame_rate_hz = self.sample_rate / self.hop_samples
        self._token_format = TokenFormat(self.name, size, frame_rate_hz, self.output_rate(model.config))

    @staticmethod
    @abstractmethod
    def input_rate(config: PreTrainedConfig) -> int:
        """Give the samples per second of what is encoded."""

    @staticmethod
    @abstractmethod
    def output_rate(config: PreTrainedConfig) -> int:
        """Give the samples per second of what is decoded."""

    @abstractmethod
    def semantic_source(self, padded: Tensor) -> Tensor:
        """Give the samples that the frames of Wav2Vec2-BERT lie in, from the padded waveform ``(S,)``."""

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: str = "float32", attention: str = "sdpa") -> Self:
        """Load a published codec.

        Args:
            path: A directory written by ``save_pretrained``, or a published name.
            dtype: Dtype of the weights, "float32", "bfloat16" or "float16". Tokens of half precision differ from those
                of full precision here and there.
            attention: Implementation of attention in transformers.

        Raises:
            FileNotFoundError: If nothing can be loaded from ``path``.
            UserError: If it holds another model, or a setting is unknown.
        """
        torch_dtype = dtype_from_name(dtype)
        check_attention(attention)
        config = read_config(path, cls.name)
        if not isinstance(config, cls.config_class):
            raise UserError(f"{cls.name}: {str(path)!r} holds a {config.model_type} model; give a {cls.name} model.")
        if is_on_meta():
            return cls(cls.model_class._from_config(config, dtype=torch_dtype, attn_implementation=attention))

        def load(name: str) -> PreTrainedModel:
            return cls.model_class.from_pretrained(name, dtype=torch_dtype, attn_implementation=attention)

        return cls(load_pretrained(load, path, cls.name))

    def constructor_arguments(self) -> dict[str, str]:
        """Give the arguments of :meth:`from_pretrained` beside the path, for a model that is saved elsewhere."""
        attention = self.model.config._attn_implementation
        return {"dtype": str(self.model.dtype).removeprefix("torch."), "attention": attention}

    @classmethod
    def with_random_weights(cls, seed: int = 0, num_semantic_layers: int = 1) -> Self:
        """Build a codec of the published size with drawn weights, to measure what it costs.

        Args:
            seed: Of the weights.
            num_semantic_layers: Layers of Wav2Vec2-BERT; 16 are published, and decoding needs none of them.

        Raises:
            UserError: If a number is out of range.
        """
        require_at_least(0, seed=seed)
        require_at_least(1, num_semantic_layers=num_semantic_layers)
        config = cls.config_class()
        config.semantic_model_config.num_hidden_layers = num_semantic_layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(cls.model_class(config))

    @property
    def token_format(self) -> TokenFormat:
        """Its tokens: 65,536 of them at 50 Hz as published."""
        return self._token_format

    @property
    def codebook_size(self) -> int:
        """Number of distinct tokens; ids are 0 .. codebook_size - 1."""
        return self._token_format.codebook_size

    @property
    def frame_rate_hz(self) -> float:
        """Tokens per second of speech."""
        return self._token_format.frame_rate_hz

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize speech.

        A row that is too short for the model's own feature extractor is filled with silence.

        Args:
            waveform: ``(B, S) float32``, 16 kHz.
            lengths: ``(B,) int64`` samples; None means that all rows are full.

        Returns:
            Tokens ``(B, T) int64``, 0 beyond each row's own number, and those numbers ``(B,) int64``.

        Raises:
            UserError: If the waveform is not ``(B, S)``, or a length exceeds it.
        """
        rows = [self._encode_row(row) for row in split_rows(waveform, lengths)]
        token_lengths = torch.tensor([len(row) for row in rows], dtype=torch.long, device=self.device)
        return pad_sequence(rows, batch_first=True), token_lengths

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``(B, T) int64``, T at least 1, into samples ``(B, T * samples_per_token) float32``."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.model.decode(audio_codes=tokens[:, None]).audio_values[:, 0].float()

    def _encode_row(self, waveform: Tensor) -> Tensor:
        """Tokenize ``(S,) float32`` to ``(T,) int64``, from what the model's feature extractor would give."""
        waveform = waveform.to(self.device, torch.float32)
        waveform = F.pad(waveform, (0, max(0, self.min_tokens * self.hop_samples - len(waveform)) + 1))
        padded = F.pad(waveform, (0, -len(waveform) % self.hop_samples))
        frames = self.log_mel(self.semantic_source(padded))
        features = frames[: len(frames) // STACKED_FRAMES * STACKED_FRAMES].reshape(
            1, -1, STACKED_FRAMES * frames.shape[1]
        )
        mask = torch.ones(features.shape[:2], dtype=torch.int32, device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            encoded = self.model.encode(
                padded[None, None].to(self.model.dtype), features.to(self.model.dtype), input_features_mask=mask
            )
        return encoded.audio_codes[0, 0].long()
