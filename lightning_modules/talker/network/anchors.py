"""Semantic anchors: which text token each speech block may see."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.talker.network.transfers import send_to


@dataclass(frozen=True)
class TextStates:
    """What the thinker wrote, for a batch of replies.

    Attributes:
        hidden: Hidden state that predicted each text token, ``(B, N, H)``.
        embedding: Input embedding of each text token, ``(B, N, E)``.
        lengths: Text tokens of each row, ``(B,) int64``, on the host or where the states are.
    """

    hidden: Tensor
    embedding: Tensor
    lengths: Tensor

    def repeat(self, num_times: int) -> "TextStates":
        """Give the whole batch several times, ``num_times * B`` rows."""
        states = (torch.cat([one] * num_times) for one in (self.hidden, self.embedding, self.lengths))
        return TextStates(*states)


class SemanticAnchors(nn.Module):
    """Projects text states and assigns ``anchors_per_block`` of them to each speech block.

    Block ``k`` carries the text tokens ``k * Q .. (k + 1) * Q - 1``: the assignment keeps the order of the
    text, and a block never carries text that the thinker had not written when its turn came.

    Args:
        hidden_size: Width of the thinker's hidden states, ``H``.
        embedding_size: Width of the thinker's token embeddings, ``E``.
        width: Width of the talker.
        anchors_per_block: Text tokens per speech block, ``Q``.

    Reference: arXiv 2602.08607, semantic anchors; the paper's values are Q = 4 and 16 speech tokens per block.
    """

    def __init__(self, hidden_size: int, embedding_size: int, width: int, anchors_per_block: int = 4) -> None:
        super().__init__()
        if anchors_per_block < 1:
            raise UserError(f"anchors_per_block is {anchors_per_block}: a block needs at least one anchor.")
        self.anchors_per_block = anchors_per_block
        self.hidden_norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.embedding_norm = nn.RMSNorm(embedding_size, eps=1e-6)
        self.projection = nn.Linear(hidden_size + embedding_size, width)
        self.no_text = nn.Parameter(torch.zeros(width))

    def project(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Project text states to anchors.

        Args:
            hidden: Hidden states, ``(..., H)``.
            embedding: Token embeddings, ``(..., E)``.

        Returns:
            Anchors, ``(..., width)``.
        """
        dtype = self.projection.weight.dtype
        states = [self.hidden_norm(hidden.to(dtype)), self.embedding_norm(embedding.to(dtype))]
        return self.projection(torch.cat(states, dim=-1))

    def forward(self, text: TextStates, num_blocks: int) -> Tensor:
        """Give every block its anchors, the learned "no text" vector where the text has ended.

        Args:
            text: What the thinker wrote.
            num_blocks: Speech blocks, ``K``.

        Returns:
            Anchors, ``(B, K, Q, width)``.
        """
        num_slots = num_blocks * self.anchors_per_block
        anchors = self.project(text.hidden, text.embedding)[:, :num_slots]
        lengths = send_to(anchors.device, text.lengths)
        is_text = torch.arange(anchors.shape[1], device=anchors.device) < lengths[:, None]
        anchors = torch.where(is_text[..., None], anchors, self.no_text.to(anchors.dtype))
        missing = self.no_text.to(anchors.dtype).expand(anchors.shape[0], num_slots - anchors.shape[1], -1)
        return torch.cat([anchors, missing], dim=1).unflatten(1, (num_blocks, self.anchors_per_block))

    def in_place(self, anchors: Tensor, block_size: int) -> Tensor:
        """Lay a block's anchors on its first ``Q`` speech positions, "no text" on the others.

        Args:
            anchors: Anchors, ``(B, K, Q, width)``.
            block_size: Speech tokens per block, at least ``Q``.

        Returns:
            One vector per speech position, ``(B, K * block_size, width)``.
        """
        batch_size, num_blocks, num_anchors, width = anchors.shape
        rest = self.no_text.to(anchors.dtype).expand(batch_size, num_blocks, block_size - num_anchors, width)
        return torch.cat([anchors, rest], dim=2).flatten(1, 2)


def count_text_overflow(text_lengths: Tensor, num_blocks: Tensor, anchors_per_block: int) -> Tensor:
    """Count the text tokens of each reply that no anchor of its own blocks can carry.

    Args:
        text_lengths: Text tokens of each reply, ``(B,) int64``.
        num_blocks: Speech blocks of each reply, ``(B,) int64``.
        anchors_per_block: Text tokens per block.

    Returns:
        Tokens that the talker would never see, ``(B,) int64``; 0 for a well-formed example.
    """
    return (text_lengths - send_to(text_lengths.device, num_blocks * anchors_per_block)).clamp(min=0)
