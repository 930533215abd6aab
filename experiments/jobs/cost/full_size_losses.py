"""What a training step of a speech LLM computes on a batch of a given size, whose contents do not matter."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datamodules.batch import SpokenBatch
from lightning_modules.speech_llm import SpeechLLM


@dataclass(frozen=True)
class BatchSize:
    """The batch of one device.

    Attributes:
        num_rows: Dialogues.
        num_units: Speech tokens of each reply.
        num_text_tokens: Text tokens of each reply.
        num_prompt_tokens: Tokens of the chat template.
        query_s: Length of each query.
    """

    num_rows: int
    num_units: int
    num_text_tokens: int
    num_prompt_tokens: int
    query_s: float


def thinker_loss(llm: SpeechLLM, batch: BatchSize) -> Tensor:
    """Do what stage 1 does: read prompt, query and reply, and score the reply; every row is as long as the others."""
    thinker, num_rows, device = llm.thinker, batch.num_rows, llm.thinker.adaptor.up.weight.device
    num_frames = round(batch.query_s * 50)
    frames = torch.zeros(
        num_rows, num_frames, thinker.adaptor.input_size, dtype=thinker.adaptor.up.weight.dtype, device=device
    )
    lengths = torch.full((num_rows,), num_frames, device=device)
    audio, _ = thinker.adaptor(frames, lengths)
    num_text = batch.num_prompt_tokens + batch.num_text_tokens
    text = thinker.language_model.embed(torch.zeros(num_rows, num_text, dtype=torch.int64, device=device))
    hidden = thinker.language_model(torch.cat([audio.to(text.dtype), text], dim=1))
    logits = thinker.language_model.logits(hidden[:, -batch.num_text_tokens - 1 :]).float()
    targets = torch.zeros(logits.shape[:2], dtype=torch.int64, device=device)
    return nn.functional.cross_entropy(logits.transpose(1, 2), targets)


def talker_loss(llm: SpeechLLM, batch: BatchSize) -> Tensor:
    """Take the training step of the talkers, on text states that are there already."""
    num_rows, device = batch.num_rows, llm.thinker.adaptor.up.weight.device
    text_ids = torch.zeros(num_rows, batch.num_text_tokens, dtype=torch.int64, device=device)
    objective, llm.thinker_objective = llm.thinker_objective, None
    try:
        return llm.training_step(
            SpokenBatch(
                ids=[str(row) for row in range(num_rows)],
                reply_texts=[""] * num_rows,
                units=torch.zeros(num_rows, batch.num_units, dtype=torch.int64, device=device),
                unit_lengths=torch.full((num_rows,), batch.num_units),
                text_ids=text_ids,
                text_hidden=text_ids.new_zeros(*text_ids.shape, llm.thinker.hidden_size, dtype=torch.bfloat16),
                text_lengths=torch.full((num_rows,), min(batch.num_text_tokens, batch.num_units // 4)),
            ),
            0,
        )
    finally:
        llm.thinker_objective = objective
