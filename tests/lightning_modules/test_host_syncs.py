"""A training step of the whole speech LLM never reads back from the device, whose place the meta device takes."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.dialogue import History, Turn
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.thinker.objective import ThinkerObjective
from lightning_modules.training.text_overflow import MAX_UNSEEN, TextOverflow
from tests.lightning_modules.talker.conftest import NUM_CODES, build_talker
from tests.lightning_modules.talker.test_host_syncs import ReadsOfADevice
from tests.lightning_modules.test_speech_llm import make_batch, make_llm, make_thinker

META = torch.device("meta")


def test_losses_clipping_and_optimizer_read_nothing_back() -> None:
    with META:
        kinds = ("ntp", "mtp", "mdm", "set_block")
        llm = SpeechLLM(make_thinker(), {kind: build_talker(kind, 32, 32) for kind in kinds}).to(META)
    optimizer = torch.optim.AdamW(llm.talkers.parameters())
    states = {
        "text_ids": torch.zeros(3, 6, dtype=torch.int64),
        "text_hidden": torch.zeros(3, 6, 32, dtype=torch.bfloat16),
    }
    states["text_lengths"] = torch.tensor([6, 2, 4])
    batch = llm.transfer_batch_to_device(replace(make_batch(0), query=None, **states), META, 0)
    with ReadsOfADevice("meta") as reads:
        for step in range(2):
            loss = llm.training_step(batch, step)
            loss.backward()
            llm.configure_gradient_clipping(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    assert reads.found == {} and loss.is_meta
    assert llm.shown_losses.keys() == {f"{kind}/loss" for kind in kinds}


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("with_history", [True, False])
def test_a_pass_of_the_thinker_reads_nothing_back(
    trains: bool, with_history: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it trains, by all of its losses, nor where it is frozen; lengths never leave the host.

    Transformers asks once per pass of a causal LM whether positions are packed, which is left out here.
    """
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)

    def ctc_loss(log_probs: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor, **_: Any) -> Tensor:
        assert lengths.is_cpu and target_lengths.is_cpu, "otherwise PyTorch reads them back"
        return log_probs.sum()

    monkeypatch.setattr(torch.nn.functional, "ctc_loss", ctc_loss)  # nor has it this
    objective = ThinkerObjective(reply=1.0, transcript=1.0, text=1.0) if trains else None
    with META:
        llm = SpeechLLM(make_thinker(), {"mdm": build_talker("mdm", 32, 32)}, objective).to(META)
    batch = replace(make_batch(0), transcripts=["A", "B", "C"])
    if with_history:
        turns = (Turn("user", "Hello.", is_spoken=True), Turn("assistant", "Yes."))
        batch = replace(batch, history=History.of([turns, (), turns], [[torch.zeros(900)], [], [torch.zeros(700)]]))
    batch = llm.transfer_batch_to_device(batch, META, 0)
    with ReadsOfADevice("meta") as reads:
        loss = llm.training_step(batch, 0)
        loss.backward()
    assert reads.found == {} and loss.is_meta
    assert batch.query is not None and batch.query.is_meta


def test_codes_of_another_codec_are_refused_before_they_leave_the_host() -> None:
    llm, batch = make_llm("ntp"), make_batch(0)
    assert batch.units is not None
    batch.units[1, 35] = NUM_CODES  # behind the end of its row, where anything may stand
    assert llm.transfer_batch_to_device(batch, META, 0).units.is_meta
    batch.units[1, 32] = NUM_CODES
    with pytest.raises(UserError, match=f"Speech token {NUM_CODES} lies outside the codebook of {NUM_CODES} codes"):
        llm.transfer_batch_to_device(batch, META, 0)


def test_text_overflow_on_a_device_is_looked_at_many_at_a_time() -> None:
    overflow = TextOverflow()
    for step in range(MAX_UNSEEN - 1):
        overflow.report([f"{step}"], torch.ones(1, dtype=torch.int64, device=META), 0)
    later = copy.copy(overflow)
    with pytest.raises(NotImplementedError, match="no data"):
        later.report(["last"], torch.ones(1, dtype=torch.int64, device=META), 0)
    on_host = TextOverflow()
    with pytest.warns(UserWarning, match=r"\['b'\] have more text .* on rank 3"):
        on_host.report(["a", "b"], torch.tensor([0, 2]), 3)
    assert on_host.ids == {"b"}
