"""Floating point operations of training talkers, counted on batches of a corpus."""

from collections.abc import Iterable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from datamodules.batch import SpokenBatch
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.base import Talker


def count_flops_per_reply(module: SpeechLLM, batches: Iterable[SpokenBatch]) -> dict[str, float]:
    """Count what a reply costs each talker in training: matrix products of forward and backward, dense attention.

    The thinker's states are read beside it and do not count, nor do the optimizer and sums that are no products. The
    count does not depend on the machine, nor on how fast it computes.

    Args:
        module: The talkers, on the device of the batches; left in evaluation mode, without gradients.
        batches: A few batches with speech tokens and text states or queries; padding counts, as it does in training.

    Returns:
        Operations per reply, by talker.

    Raises:
        UserError: If there is no batch, or one has no speech tokens.
    """
    totals = {name: 0 for name in module.talkers}
    num_replies = 0
    for batch in batches:
        if batch.units is None or batch.unit_lengths is None:
            raise UserError("training is counted on speech tokens: add units to the data module's fields")
        text = module.eval().read_text(batch)
        num_replies += len(batch.ids)
        for name, talker in module.talkers.items():
            assert isinstance(talker, Talker)
            generator = torch.Generator(batch.units.device).manual_seed(num_replies)
            talker.train().requires_grad_(True)
            # Fused attention is not counted on every device; written out, it is two products everywhere.
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                talker(text, batch.units, batch.unit_lengths, generator).loss.backward()
            totals[name] += counter.get_total_flops()
            talker.zero_grad(set_to_none=True)
            talker.eval()
    if not num_replies:
        raise UserError("there is no batch to count a training step on; give a corpus with validation dialogues")
    return {name: total / num_replies for name, total in totals.items()}
