"""A thinker that learns to hear better keeps writing as before."""

import torch

from lightning_modules.thinker.hearing_alone import train_hearing_alone
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.thinker.tiny import REPLIES

Speech = tuple[torch.Tensor, torch.Tensor]


def test_the_language_model_stays_and_the_rest_learns(thinker: Thinker, speech: Speech) -> None:
    before = {name: value.clone() for name, value in thinker.state_dict().items()}
    written = thinker.read(REPLIES, REPLIES)
    trained = train_hearing_alone(thinker)
    optimizer = torch.optim.AdamW([one for one in trained.parameters() if one.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        output = trained(*speech, REPLIES)
        losses.append(float(output.loss.detach()))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    changed = {
        name.split(".")[0] for name, value in trained.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"speech_encoder", "adaptor"}
    assert torch.equal(trained.read(REPLIES, REPLIES).hidden, written.hidden)
