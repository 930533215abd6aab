"""What took part in a comparison, as `system.json` tells it."""

from typing import Any

import lightning as L
import torch

from lightning_modules.speech_llm import SpeechLLM


def describe_system(module: SpeechLLM, trainer: L.Trainer) -> dict[str, Any]:
    """Describe the parts of a system that was tested, and where it ran.

    Args:
        module: The system.
        trainer: Tested it.

    Returns:
        What `system.json` holds.
    """
    assert module.vocoder is not None
    talkers = {}
    for name, talker in module.talkers.items():
        talkers[name] = {
            "kind": type(talker).__name__,
            "num_parameters": count(talker),
            "block_size": talker.block_size,
            "text_view": talker.text_view,
        }
    device = module.device
    return {
        "talkers": talkers,
        "thinker": {"kind": type(module.thinker).__name__, "num_parameters": count(module.thinker)},
        "vocoder": {"kind": type(module.vocoder).__name__, "sample_rate_hz": module.vocoder.sample_rate},
        "token_rate_hz": module.vocoder.frame_rate_hz,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_devices": trainer.world_size,
        "num_threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
    }


def count(module: torch.nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
