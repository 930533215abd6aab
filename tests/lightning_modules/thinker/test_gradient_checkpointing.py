"""Gradient checkpointing changes no loss and no gradient, and keeps less for the backward pass."""

from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.pretrained import save_pretrained_parts
from tests.lightning_modules.thinker.tiny import REPLIES

Speech = tuple[Tensor, Tensor]


def make_thinker(folder: Path, gradient_checkpointing: bool) -> Thinker:
    encoder = SpeechEncoder.from_pretrained(
        folder / "whisper", pad_to_s=None, gradient_checkpointing=gradient_checkpointing
    )
    language_model = LanguageModel.from_pretrained(folder / "qwen3", gradient_checkpointing=gradient_checkpointing)
    torch.manual_seed(1)
    return Thinker(encoder, Adaptor(32, 32, 64), language_model, str(folder / "qwen3")).train()


def gradients(thinker: Thinker, speech: Speech) -> tuple[Tensor, dict[str, Tensor], int]:
    """Give loss, gradients, and how many numbers are kept between the passes."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    parameters = {parameter.untyped_storage().data_ptr() for parameter in thinker.parameters()}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = thinker(*speech, REPLIES).loss
    loss.backward()
    found = {name: one.grad for name, one in thinker.named_parameters() if one.grad is not None}
    return loss.detach(), found, sum(size for place, size in kept.items() if place not in parameters)


def test_less_is_kept_and_nothing_else_changes(tmp_path: Path, speech: Speech) -> None:
    save_pretrained_parts(tmp_path)
    loss, expected, num_kept = gradients(make_thinker(tmp_path, False), speech)
    again, found, num_kept_less = gradients(make_thinker(tmp_path, True), speech)
    torch.testing.assert_close(again, loss)
    assert found.keys() == expected.keys() and any("speech_encoder" in name for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
    assert num_kept_less < 0.6 * num_kept
