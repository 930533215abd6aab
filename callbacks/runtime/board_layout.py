"""The page Custom Scalars of TensorBoard: which curves are drawn over each other, under which headings."""

from torch.utils.tensorboard import SummaryWriter

Layout = dict[str, dict[str, list[str | list[str]]]]


def _charts(**tags: str) -> dict[str, list[str | list[str]]]:
    return {title.replace("_", " "): ["Multiline", [f"^{tag}$"]] for title, tag in tags.items()}


# One TensorBoard run per talker, with equal tags: a chart of one tag holds a curve for each of them.
LAYOUT: Layout = {
    "AR against MDM: learning, over training steps": _charts(
        validation_loss_in_nats_per_token="val/nll",
        validation_accuracy="val/accuracy",
        training_loss_in_nats_per_token="train/nll",
    ),
    "AR against MDM: quality and speed, over decoding steps per block": _charts(
        word_error_rate="decode/wer_micro",
        real_time_factor="decode/rtf",
        speech_tokens_per_second="decode/tokens_per_s",
        first_chunk_in_ms="decode/first_chunk_ms/total",
        network_passes_per_block="decode/forwards_per_block",
    ),
    "Cost of training, over training steps": _charts(
        learning_rate="train/learning_rate",
        seconds_per_step="train/step_s",
        speech_tokens_per_second_="train/tokens_per_s",
        share_of_padding="train/padding_share",
        peak_memory_in_GB="train/peak_memory_gb",
    ),
}


def add_layout(writer: SummaryWriter) -> None:
    """Write the page into a run; TensorBoard lays the equal pages of several runs into one."""
    writer.add_custom_scalars(LAYOUT)
