"""Our talker gives the tokens and the training loss of VocalNet's own code.

`released_code.json` was made outside this repository: SJTU-OmniAgent/VocalNet at commit bdf01d2 under the transformers
that it pins (4.43.4), its `SpeechGeneratorARMTP` with the random weights of `tiny.draw_weights` (whose names it takes
without a change), on hidden states drawn with the seed `num_states`. Whole texts went through `predict_mtp` (and
`predict`, which has no penalty), growing ones through `streaming_predict_mtp`, five states per call and the end of the
text with the last one; losses are those of `forward` for one example, as torch's seed chose between its two kinds of
masks. Beyond what is pinned here, 253 random decodings of 0 to 40 states and 1 to 5 tokens per pass and 28 losses were
compared so, and none differed.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.repetition import RepetitionPenalty
from lightning_modules.talker.decoding.streaming import KnownTextState
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.vocalnet.vocalnet_talker import VocalNetTalker
from tests.lightning_modules.talker.vocalnet.tiny import END_OF_TEXT_ID, make_config, write_checkpoint

RELEASED = json.loads((Path(__file__).parent / "released_code.json").read_text())
EOS_ID = make_config()["speech_eos_token_id"]
WAYS: dict[str, dict[str, Any]] = {
    "streaming": {},
    "whole_text": {"whole_text": True},
    "whole_text_without_penalty": {"whole_text": True, "repetition": RepetitionPenalty(1.0)},
}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, float], VocalNetTalker]:
    """Import a talker of tiny random weights."""

    @cache
    def imported(seed: int, eos_bias: float) -> VocalNetTalker:
        path = tmp_path_factory.mktemp(f"vocalnet_{seed}")
        write_checkpoint(path, seed, eos_bias)
        return VocalNetTalker.from_checkpoint(path, END_OF_TEXT_ID).eval()

    return imported


def drawn(num_states: int, num_units: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_states)
    states = torch.randn(num_states, 16, generator=generator)
    return states, torch.randint(0, 20, (num_units,), generator=generator)


@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_the_released_decoder(way: str, load: Callable[[int, float], VocalNetTalker]) -> None:
    cases = [case for case in RELEASED["tokens"] if case["way"] == way]
    assert len(cases) >= 2
    for case in cases:
        states, _ = drawn(case["num_states"], 0)
        text = [KnownTextState(state, state[:0]) for state in states]
        talker = load(case["seed"], case["eos_bias"])
        chunks = list(talker.stream(text, 3, Decoding("it", case["num_steps"], **WAYS[way])))
        spoken = torch.cat([chunk.tokens for chunk in chunks]).tolist()
        assert spoken + [EOS_ID] * chunks[-1].ended == case["tokens"], case


def test_the_loss_is_that_of_the_released_training(load: Callable[[int, float], VocalNetTalker]) -> None:
    for case in RELEASED["losses"]:
        states, units = drawn(case["num_states"], case["num_units"])
        text = TextStates(states[None], states[None, :, :0], torch.tensor([len(states)]))
        seeds = (torch.Generator().manual_seed(seed) for seed in range(99))
        generator = next(one for one in seeds if bool(torch.rand(1, generator=one) > 0.5) == case["sees_all"])
        generator.manual_seed(generator.initial_seed())
        talker = load(case["seed"], case["eos_bias"])
        output = talker(text, units[None], torch.tensor([len(units)]), [generator])
        assert float(output.loss.detach()) == pytest.approx(case["loss"], abs=2e-4), case
