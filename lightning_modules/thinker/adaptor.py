"""Adaptor: frames of the speech encoder to input embeddings of the language model, 5x fewer."""

import torch
from torch import Tensor, nn

from lightning_modules.number_checks import require_at_least


class Adaptor(nn.Module):
    """Neighbouring frames, concatenated and mapped to the language model's width by a two-layer MLP.

    Args:
        input_size: Width of a speech encoder frame.
        output_size: Width of the language model's input embeddings.
        hidden_size: Inner width of the MLP.
        num_stacked_frames: Frames concatenated into one embedding; the last group is filled with zeros.

    Raises:
        UserError: If a number is below 1.
    """

    def __init__(self, input_size: int, output_size: int, hidden_size: int = 2048, num_stacked_frames: int = 5) -> None:
        super().__init__()
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
        self.up = nn.Linear(input_size * num_stacked_frames, hidden_size)
        self.down = nn.Linear(hidden_size, output_size)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map frames to embeddings.

        Args:
            frames: ``(B, F, input_size)``.
            lengths: ``(B,) int64``, frames of each row.

        Returns:
            Embeddings ``(B, ceil(F / num_stacked_frames), output_size)``, and their lengths ``(B,) int64``.
        """
        stack = self.num_stacked_frames
        is_frame = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
        frames = (frames * is_frame[..., None].to(frames.dtype)).to(self.up.weight.dtype)
        frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % stack))
        stacked = frames.reshape(frames.shape[0], -1, stack * self.input_size)
        return self.down(nn.functional.gelu(self.up(stacked))), (lengths + stack - 1) // stack
