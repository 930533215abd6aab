"""The multi-token talker: what each layer predicts, cached decoding, growing out of an NTP talker."""

import pytest
import torch
from torch import Tensor

from lightning_modules.talker.decoding.streaming import states_of_row
from lightning_modules.talker.multi_token import MultiTokenTalker
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.backbone import TalkerBackbone
from tests.lightning_modules.talker.conftest import in_steps, make_talker, make_text


@pytest.fixture
def talker() -> MultiTokenTalker:
    made = make_talker("mtp")
    assert isinstance(made, MultiTokenTalker)
    return made


@torch.no_grad()
def decode_without_cache(
    talker: MultiTokenTalker, text: TextStates, max_blocks: int, tokens_per_step: int
) -> tuple[Tensor, list[int]]:
    """Plain loop: every step runs the training forward on the whole prefix."""
    tokens, forwards = torch.zeros(1, 0, dtype=torch.int64), []
    for block in range(max_blocks):
        end, num_forwards = (block + 1) * talker.block_size, 0
        while tokens.shape[1] < end:
            place = tokens.shape[1]
            padded = torch.cat([tokens, torch.zeros(1, end - place, dtype=torch.int64)], dim=1)
            hidden = talker.ahead_hidden(text, padded)[:tokens_per_step]
            predicted = torch.stack([talker.head(state[0, place]).argmax() for state in hidden])
            tokens = torch.cat([tokens, predicted[None, : end - place]], dim=1)
            num_forwards += 1
        forwards.append(num_forwards)
        if (tokens[0, end - talker.block_size :] == talker.vocabulary.eos_id).any():
            break
    is_eos = (tokens[0] == talker.vocabulary.eos_id).nonzero()
    return (tokens[0, : int(is_eos[0])] if len(is_eos) else tokens[0]), forwards


@pytest.mark.parametrize(("num_steps", "tokens_per_step"), [(8, 1), (4, 2), (3, 3), (2, 4)])
def test_cached_decoding_equals_the_full_forward(
    talker: MultiTokenTalker, num_steps: int, tokens_per_step: int
) -> None:
    text = make_text([7])
    expected, forwards = decode_without_cache(talker, text, 5, tokens_per_step)
    chunks = list(talker.stream(states_of_row(text, 0), 5, in_steps(num_steps)))
    assert torch.cat([chunk.tokens for chunk in chunks]).tolist() == expected.tolist()
    assert len(chunks) > 1, "one block alone would not test the cache"
    assert (
        [chunk.num_forwards for chunk in chunks[:-1]] == forwards[: len(chunks) - 1] == [num_steps] * (len(chunks) - 1)
    )


@torch.no_grad()
def test_a_layer_reads_nothing_of_what_it_predicts(talker: MultiTokenTalker) -> None:
    text = make_text([6])
    tokens = torch.randint(0, 30, (1, 16), generator=torch.Generator().manual_seed(0))
    before = talker.ahead_hidden(text, tokens)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 30
    for first, second in zip(before, talker.ahead_hidden(text, changed), strict=True):
        torch.testing.assert_close(first[:, :6], second[:, :6], rtol=0, atol=0)
        assert (first[:, 6:] - second[:, 6:]).abs().amax(-1).min() > 0


def test_no_layer_is_scored_across_the_end_of_a_block_or_behind_eos(talker: MultiTokenTalker) -> None:
    text, lengths = make_text([4]), torch.tensor([10])
    units = torch.randint(0, 30, (1, 10), generator=torch.Generator().manual_seed(0))
    hidden: list[Tensor] = []
    whole = talker.ahead_hidden

    def spy(*arguments: object) -> list[Tensor]:
        hidden.extend(state.detach().requires_grad_() for state in whole(*arguments))  # type: ignore[arg-type]
        return hidden

    talker.ahead_hidden = spy  # type: ignore[method-assign, assignment]
    talker(text, units, lengths, torch.Generator()).loss.backward()
    for ahead, state in enumerate(hidden):
        assert state.grad is not None
        is_scored = [place + ahead <= 10 and place % 8 + ahead < 8 for place in range(16)]
        assert (state.grad[0].abs().amax(-1) > 0).tolist() == is_scored


def test_it_grows_out_of_a_next_token_talker(talker: MultiTokenTalker) -> None:
    source = make_talker("ntp")
    with torch.no_grad():
        source.head.weight.add_(1.0)
    before = {name: value.clone() for name, value in talker.extra_layers.state_dict().items()}
    talker.copy_weights(source)
    assert torch.equal(talker.head.weight, source.head.weight)
    assert all(torch.equal(value, before[name]) for name, value in talker.extra_layers.state_dict().items())
    assert make_talker("ntp").state_dict().keys() < talker.state_dict().keys()
    source.copy_weights(talker)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"extra_layers": []}, "0 extra_layers"), ({"decay": 0.0}, "decay is 0.0"), ({"block_size": 3}, "3 extra_layers")],
)
def test_nonsense_is_refused(talker: MultiTokenTalker, changes: dict, message: str) -> None:
    arguments = {"extra_layers": list(talker.extra_layers), "block_size": 8, **changes}
    with pytest.raises(ValueError, match=message):
        MultiTokenTalker(30, talker.anchors, talker.backbone, **arguments)


def test_an_extra_layer_of_another_width_is_refused(talker: MultiTokenTalker) -> None:
    with pytest.raises(ValueError, match="wide"):
        MultiTokenTalker(30, talker.anchors, talker.backbone, [TalkerBackbone(16, 1, 2)], 8)
