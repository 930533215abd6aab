"""Text states that another job wrote, in place of a thinker pass."""

from datamodules.batch import SpokenBatch
from lightning_modules.errors import UserError
from lightning_modules.talker.network.anchors import TextStates


def stored_text_states(batch: SpokenBatch, hidden_size: int, embedding_size: int) -> TextStates:
    """Split the text states of a batch into hidden states and embeddings.

    Args:
        batch: Holds `text_states` (B, N, hidden_size + embedding_size) and their lengths.
        hidden_size: Width of the thinker's hidden states.
        embedding_size: Width of its embeddings.

    Returns:
        What talkers read.

    Raises:
        UserError: If the states have another width.
    """
    assert batch.text_states is not None and batch.text_lengths is not None
    width = batch.text_states.shape[-1]
    if width != hidden_size + embedding_size:
        raise UserError(
            f"The text states are {width} wide, the thinker's hidden states and embeddings {hidden_size} + "
            f"{embedding_size}: set text_states_root to the states that this thinker wrote."
        )
    hidden, embedding = batch.text_states.split([hidden_size, embedding_size], dim=-1)
    return TextStates(hidden, embedding, batch.text_lengths)
