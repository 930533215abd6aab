"""Compiles the decoder layers of talkers while they train."""

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.decoding.static.runners import cpp_compiler, has_compiler
from lightning_modules.talker.network.backbone import DecoderLayer


class CompiledTalkers(Callback):
    """Lets :func:`torch.compile` fuse what a decoder layer does, in training and validation; decoding is as before.

    It pays where a training is much longer than compilation, about half a minute of a CPU. Parameters, their names and
    checkpoints stay as they are. On a CPU without a C++ compiler the layers run as they are, and one line says so.

    Args:
        backend: Of :func:`torch.compile`.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile; the first step then takes as long as that does."""
        if pl_module.device.type == "cpu" and self.backend == "inductor" and not has_compiler():
            logging.getLogger(__name__).warning(
                "no C++ compiler (%s): the talkers train without torch.compile", cpp_compiler()
            )
            return
        layers = _layers_of(pl_module)
        if not layers:
            raise UserError(
                "compiled talkers: no talker here has decoder layers of this project; leave the callback out"
            )
        for layer in layers:
            layer.compile(dynamic=True, backend=self.backend)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the layers run as they are again: what follows has other shapes."""
        for layer in _layers_of(pl_module):
            layer._compiled_call_impl = None


def _layers_of(module: LightningModule) -> list[DecoderLayer]:
    assert isinstance(module, SpeechLLM), "compiled talkers are those of a SpeechLLM"
    return [layer for layer in module.talkers.modules() if isinstance(layer, DecoderLayer)]
