"""The page Custom Scalars of TensorBoard: which curves are drawn over each other, under which headings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what only looks at a training, or speaks, need not load TensorBoard
    from torch.utils.tensorboard import SummaryWriter

Layout = dict[str, dict[str, list[str | list[str]]]]


def _charts(tags: dict[str, str]) -> dict[str, list[str | list[str]]]:
    return {title: ["Multiline", [f"^{tag}$"]] for title, tag in tags.items()}


# One TensorBoard run per talker, with equal tags: a chart of one tag holds a curve for each of them.
LAYOUT: Layout = {
    "AR against MDM: learning, over training steps": _charts(
        {
            "validation loss in nats per token": "val/nll",
            "validation accuracy": "val/accuracy",
            "training loss in nats per token": "train/nll",
        }
    ),
    "AR against MDM: quality and speed, over decoding steps per block": _charts(
        {
            "word error rate": "decode/wer_micro",
            "real time factor": "decode/rtf",
            "speech tokens per second": "decode/tokens_per_s",
            "first chunk in ms": "decode/first_chunk_ms/total",
            "network passes per block": "decode/forwards_per_block",
        }
    ),
    "Cost of training, over training steps": _charts(
        {
            "learning rate": "train/learning_rate",
            "seconds per step": "train/step_s",
            "speech tokens per second ": "train/tokens_per_s",  # TensorBoard takes charts of one title for one
            "share of padding": "train/padding_share",
            "peak memory in GB": "train/peak_memory_gb",
        }
    ),
}


def add_layout(writer: SummaryWriter) -> None:
    """Write the page into a run; TensorBoard lays the equal pages of several runs into one."""
    writer.add_custom_scalars(LAYOUT)
