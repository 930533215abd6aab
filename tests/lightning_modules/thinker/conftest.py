"""Fixtures of the thinker's tests."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.thinker.tiny import make_language_model, make_speech_encoder, make_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a ChatML template and `<|audio|>`."""
    return make_tokenizer()


@pytest.fixture
def thinker(tokenizer: PreTrainedTokenizerFast) -> Thinker:
    """An untrained thinker with seeded weights."""
    torch.manual_seed(0)
    return Thinker(make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), tokenizer)


@pytest.fixture
def speech() -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of noise of different lengths: (3, S) and (3,)."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([16000, 9001, 21337])
    waveform = 0.1 * torch.randn(3, 21337, generator=generator)
    return waveform, lengths


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a saved tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(path)
    return path
