"""Adaptor: frames of the speech encoder to input embeddings of the language model, 5x fewer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.pretrained.meta_device import is_on_meta
from lightning_modules.pretrained.weight_files import WeightFiles, read_config_file
from lightning_modules.talker.network.transfers import is_within

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": nn.functional.gelu, "relu": nn.functional.relu}
_VOCALNET_HIDDEN_SIZE = 2048
_VOCALNET_LAYERS = (("linear1", "up"), ("linear2", "down"))


class Adaptor(nn.Module):
    """Neighbouring frames, concatenated and mapped to the language model's width by a two-layer MLP.

    Args:
        input_size: Width of a speech encoder frame.
        output_size: Width of the language model's input embeddings.
        hidden_size: Inner width of the MLP.
        num_stacked_frames: Frames concatenated into one embedding; the last group is filled with zeros.
        activation: Between the layers: `gelu`, or `relu` as in VocalNet.

    Raises:
        UserError: If a number is below 1, or the activation is unknown.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_size: int = 2048,
        num_stacked_frames: int = 5,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise UserError(f"adaptor: activation {activation!r} is unknown; choose one of {', '.join(_ACTIVATIONS)}")
        require_at_least(
            1,
            input_size=input_size,
            output_size=output_size,
            hidden_size=hidden_size,
            num_stacked_frames=num_stacked_frames,
        )
        self.input_size = input_size
        self.output_size = output_size
        self.num_stacked_frames = num_stacked_frames
        self.activation, self.activate = activation, _ACTIVATIONS[activation]
        self.up = nn.Linear(input_size * num_stacked_frames, hidden_size)
        self.down = nn.Linear(hidden_size, output_size)

    @classmethod
    def from_vocalnet(cls, path: str | Path) -> "Adaptor":
        """Read the adaptor out of a released VocalNet checkpoint; of its weights, no others are read.

        On the meta device `config.json` alone is read.

        Args:
            path: Directory with `config.json` and the weights, in safetensors or .bin, in one file or in shards.

        Returns:
            The adaptor, in float32. Where the number of frames is no multiple of five it fills the last group with
            zeros; VocalNet drops it.

        Raises:
            FileNotFoundError: If a file is missing.
            UserError: If the configuration lacks a size, or a weight is missing, unexpected or of another shape.
        """
        what = "VocalNet's adaptor"
        config = read_config_file(path, what)
        keys = ("speech_encoder_hidden_size", "hidden_size", "speech_encoder_ds_rate")
        if missing := [key for key in keys if key not in config]:
            raise UserError(
                f"{what}: config.json in {path} has no {missing}; give the directory of a VocalNet checkpoint"
            )
        input_size, output_size, num_stacked_frames = (int(config[key]) for key in keys)
        sizes = input_size, output_size, _VOCALNET_HIDDEN_SIZE, num_stacked_frames
        if is_on_meta():
            return cls(*sizes, activation="relu")
        with torch.device("meta"):
            adaptor = cls(*sizes, activation="relu")
        names = {f"{theirs}.{one}": f"{ours}.{one}" for theirs, ours in _VOCALNET_LAYERS for one in ("weight", "bias")}
        shapes = {theirs: adaptor.get_parameter(ours).shape for theirs, ours in names.items()}
        weights = WeightFiles(path, what).read_all("model.speech_projector.", shapes)
        adaptor.load_state_dict({names[theirs]: value for theirs, value in weights.items()}, assign=True)
        return adaptor

    def constructor_arguments(self) -> dict[str, Any]:
        """Give plain arguments that build it again, without weights, also if it was read from published files."""
        names = ("input_size", "output_size", "num_stacked_frames", "activation")
        return {**{name: getattr(self, name) for name in names}, "hidden_size": self.down.in_features}

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map frames to embeddings.

        Args:
            frames: ``(B, F, input_size)``.
            lengths: ``(B,) int64``, frames of each row.

        Returns:
            Embeddings ``(B, ceil(F / num_stacked_frames), output_size)``, and their lengths ``(B,) int64``, where those
            of the frames are.
        """
        stack = self.num_stacked_frames
        is_frame = is_within(lengths, frames.shape[1], frames.device)
        frames = (frames * is_frame[..., None].to(frames.dtype)).to(self.up.weight.dtype)
        frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % stack))
        stacked = frames.reshape(frames.shape[0], -1, stack * self.input_size)
        return self.down(self.activate(self.up(stacked))), (lengths + stack - 1) // stack
