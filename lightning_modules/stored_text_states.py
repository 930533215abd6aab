"""Text states that a job stored, for talkers that train without running the thinker."""

from typing import Any

import torch

from datamodules.batch import SpokenBatch
from lightning_modules.errors import UserError
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.transfers import send_to
from lightning_modules.thinker.identity import thinker_digest
from lightning_modules.thinker.thinker import Thinker


@torch.no_grad()
def stored_states(thinker: Thinker, batch: SpokenBatch) -> TextStates:
    """Take hidden states from a batch, and embeddings from the thinker that wrote them.

    Args:
        thinker: The thinker, on the device of the batch.
        batch: Holds token ids and hidden states.

    Returns:
        What a pass of the thinker gives, its hidden states rounded to bfloat16.

    Raises:
        UserError: If the hidden states are not as wide as the thinker's.
    """
    assert batch.text_ids is not None and batch.text_hidden is not None and batch.text_lengths is not None
    if batch.text_hidden.shape[-1] != thinker.hidden_size:
        raise UserError(
            f"The text states are {batch.text_hidden.shape[-1]} wide, the thinker's hidden states "
            f"{thinker.hidden_size}: set text_states_root to the states that this thinker wrote."
        )
    device = batch.text_ids.device
    is_text = torch.arange(batch.text_ids.shape[1], device=device) < send_to(device, batch.text_lengths)[:, None]
    embedding = thinker.language_model.embed(batch.text_ids)
    embedding = embedding * is_text[..., None].to(embedding.dtype)
    return TextStates(batch.text_hidden, embedding, batch.text_lengths)


def refuse_states_of_another(thinker: Thinker, datamodule: Any) -> None:
    """Refuse data whose text states another thinker wrote, or the same one with another adapter.

    Args:
        thinker: The thinker that the talkers speak for.
        datamodule: What gives the batches; its `thinkers_of_states`, if it has any, says who wrote its states.

    Raises:
        UserError: If a digest is not that of the thinker.
    """
    writers: dict[str, str] = getattr(datamodule, "thinkers_of_states", {})
    own = thinker_digest(thinker) if writers else ""
    for name, writer in writers.items():
        if writer != own:
            raise UserError(
                f"the text states of {name} were written by another thinker, or with another adapter (digest "
                f"{writer[:12]}, this one has {own[:12]}), and differ from those that the talkers get at decoding; run "
                "the stage text_states with this thinker and set text_states_root, or text_states of the sharded set, "
                "to that run, or read 'query' in place of 'text_states'"
            )
