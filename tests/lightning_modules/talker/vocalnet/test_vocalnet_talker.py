"""Masks, cached decoding, training and what is refused; what holds for every talker is tested beside the others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.repetition import RepetitionPenalty
from lightning_modules.talker.decoding.streaming import KnownTextState, states_of_row
from lightning_modules.talker.decoding.unmasking import Unmasking
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.vocalnet.sizes import VocalNetSizes
from lightning_modules.talker.vocalnet.training_masks import DecodedLayout, ReleasedLayout
from lightning_modules.talker.vocalnet.vocalnet_talker import VocalNetTalker
from tests.lightning_modules.talker.conftest import HIDDEN, NUM_CODES, make_talker, make_text

PLAIN = RepetitionPenalty(1.0)


def make_vocalnet() -> VocalNetTalker:
    talker = make_talker("vocalnet")
    assert isinstance(talker, VocalNetTalker)
    return talker


def growing_and_whole(talker: VocalNetTalker, text: TextStates, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the next tokens of one row if its text grows, and if all of it is seen, each ``(T + 1, V)``."""
    kinds = (torch.tensor([False]), torch.tensor([True]))
    growing, whole = (talker.head(talker.ahead_hidden(text, tokens, one)[0])[0].detach() for one in kinds)
    return growing, whole


@settings(max_examples=25, deadline=None)
@given(changed=st.integers(0, 7), seed=st.integers(0, 99))
def test_where_text_grows_a_text_state_changes_no_token_before_its_block(changed: int, seed: int) -> None:
    talker = make_vocalnet()
    text = make_text([8], seed)
    tokens = torch.randint(0, NUM_CODES, (1, 40), generator=torch.Generator().manual_seed(seed))
    before = growing_and_whole(talker, text, tokens)
    hidden = text.hidden.clone()
    hidden[0, changed] += 1.0
    after = growing_and_whole(talker, TextStates(hidden, text.embedding, text.lengths), tokens)
    # The state has slot `changed + 1` behind bos; the first block takes its own last token in, too.
    own_block = (changed + 1) // 2
    first = own_block * talker.block_size + (own_block > 0)
    is_changed = [(one - other).abs().amax(-1) > 1e-6 for one, other in zip(after, before, strict=True)]
    assert not is_changed[0][:first].any() and is_changed[0][first : first + talker.block_size].all()
    assert is_changed[1].all(), "all speech sees all text"


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=3), num_speech=st.integers(1, 20), data=st.data())
def test_no_slot_sees_later_speech_or_padding(lengths: list[int], num_speech: int, data: st.DataObject) -> None:
    sees_all = torch.tensor([data.draw(st.booleans()) for _ in lengths])
    ahead = data.draw(st.integers(0, 3))
    num_text = max(lengths)
    layout = ReleasedLayout(num_text, num_speech, torch.tensor(lengths), sees_all, text_per_block=2, block_size=4)
    mask = layout.mask(ahead)
    for row, length in enumerate(lengths):
        assert layout.positions()[row, num_text:].tolist() == list(range(length, length + num_speech))
        for slot in range(num_speech):
            seen = mask[row, num_text + slot]
            assert seen[num_text:].tolist() == [True] * (slot + 1) + [False] * (num_speech - slot - 1)
            predicts = min(slot + ahead, num_speech - 1)
            block = max(predicts - 1, 0) // 4
            limit = length if sees_all[row] else min(length, 2 * (block + 1))
            assert seen[:num_text].tolist() == [True] * limit + [False] * (num_text - limit)
        text = mask[row, :length, :length]
        assert torch.equal(text, torch.ones_like(text) if sees_all[row] else torch.ones_like(text).tril())
        assert not mask[row, :num_text, num_text:].any(), "text sees no speech"


def from_scratch(
    talker: VocalNetTalker, text: TextStates, num_blocks: int, num_ahead: int, sees_all: bool
) -> list[int]:
    """Decode by a full pass of the training network, in the layout of decoding, for each token."""
    tokens = torch.zeros(1, 0, dtype=torch.int64)
    for index in range(num_blocks * talker.block_size):
        states = talker.ahead_hidden(text, tokens, torch.tensor([sees_all]))
        # The layer that predicts this token, and the slot from which a pass of that many tokens does so.
        ahead = index % talker.block_size % (num_ahead + 1)
        heads = [talker.head, *(layer.head for layer in talker.mtp_layers)]  # type: ignore[union-attr]
        logits = heads[ahead](states[ahead][0, index - ahead])
        logits[talker.vocabulary.never_spoken] = -torch.inf
        if int(logits.argmax()) == talker.vocabulary.eos_id:
            break
        tokens = torch.cat([tokens, logits.argmax()[None, None]], dim=1)
    return tokens[0].tolist()


@pytest.mark.parametrize("whole_text", [False, True])
@pytest.mark.parametrize("num_states", [1, 2, 5, 6])
@torch.no_grad()
def test_cached_decoding_equals_full_passes_over_what_decoding_sees(num_states: int, whole_text: bool) -> None:
    talker = make_vocalnet()
    talker.layout = DecodedLayout
    text = make_text([num_states], seed=num_states)
    # Several tokens per pass read the late slots of a block with the text of the next one, if text grows.
    for num_ahead in (0, 1, 3) if whole_text else (0,):
        decoding = Decoding("it", 8 // (num_ahead + 1), repetition=PLAIN, whole_text=whole_text)
        spoken = torch.cat([chunk.tokens for chunk in talker.stream(states_of_row(text, 0), 4, decoding)]).tolist()
        assert spoken == from_scratch(talker, text, 4, num_ahead, whole_text)
        assert len(spoken) > 0


def test_forward_passes_count_those_that_read_text() -> None:
    talker = make_vocalnet()
    talker.output_proj.bias.data[talker.vocabulary.eos_id] = -1e4  # no end
    for layer in talker.mtp_layers:
        layer.output_proj.bias.data[talker.vocabulary.eos_id] = -1e4  # type: ignore[union-attr]
    for num_steps, whole_text, expected in [
        (8, False, [9, 9, 9, 8]),
        (2, False, [3, 3, 3, 2]),
        (3, False, [4, 4, 4, 3]),  # 3 tokens per pass: 3 passes per block, cut short while text may follow
        (3, True, [4, 3, 2, 3]),  # 9 tokens for the first block, so that the third one needs but two passes
    ]:
        text = states_of_row(make_text([5]), 0)
        chunks = list(talker.stream(text, 4, Decoding("it", num_steps, whole_text=whole_text)))
        assert [chunk.num_forwards for chunk in chunks] == expected, (num_steps, whole_text)
        assert [len(chunk.tokens) for chunk in chunks] == [8] * 4


def test_states_at_the_tokens_are_those_that_predict_the_next_ones() -> None:
    first, second = make_vocalnet(), make_vocalnet()
    second.state_offset = 1
    text, later = make_text([6]), make_text([7])
    later.hidden[:, 1:] = text.hidden
    decoding = Decoding("it")
    spoken = [
        torch.cat([chunk.tokens for chunk in talker.stream(states_of_row(one, 0), 4, decoding)]).tolist()
        for talker, one in ((first, text), (second, later))
    ]
    assert spoken[0] == spoken[1]
    units, lengths = torch.randint(0, NUM_CODES, (1, 20)), torch.tensor([20])
    losses = [
        float(talker(one, units, lengths, torch.Generator().manual_seed(0)).nll)
        for talker, one in ((first, text), (second, later))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("state_offset", [0, 1])
def test_a_reply_without_text_is_spoken_and_scored(state_offset: int) -> None:
    talker = make_vocalnet()
    talker.state_offset = state_offset
    assert len(list(talker.stream([], 2, Decoding("it")))) >= 1
    text = TextStates(torch.zeros(1, 1, HIDDEN), torch.zeros(1, 1, 0), torch.tensor([0]))
    assert talker(text, torch.tensor([[1, 2]]), torch.tensor([2]), torch.Generator()).loss.isfinite()


def test_it_overfits_a_batch_and_speaks_it_with_growing_and_with_whole_text() -> None:
    talker = make_vocalnet().train()
    talker.layout = DecodedLayout
    text, lengths = make_text([6, 3, 5], seed=3), torch.tensor([21, 8, 15])
    units = torch.randint(0, NUM_CODES, (3, 21), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(talker.parameters(), lr=4e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        loss = talker(text, units, lengths, generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    talker.eval()
    for row in range(3):
        for whole_text in (False, True):
            decoding = Decoding("it", 8, repetition=PLAIN, whole_text=whole_text)
            chunks = list(talker.stream(states_of_row(text, row), 6, decoding))
            assert torch.cat([chunk.tokens for chunk in chunks]).tolist() == units[row, : lengths[row]].tolist()
            assert chunks[-1].ended and chunks[-1].is_last


def test_every_weight_learns() -> None:
    talker = make_vocalnet()
    units, generators = torch.randint(0, NUM_CODES, (4, 20)), [torch.Generator().manual_seed(seed) for seed in range(4)]
    talker(make_text([6] * 4), units, torch.tensor([20] * 4), generators).loss.backward()
    assert [name for name, one in talker.named_parameters() if one.grad is None or not one.grad.any()] == []


def test_a_token_is_penalised_once_for_each_time_it_came() -> None:
    logits = torch.tensor([8.0, 8.0, -8.0, 8.0])
    lowered = RepetitionPenalty(factor=2.0, window=4)(logits, torch.tensor([3, 0, 1, 1, 2]))
    assert lowered.tolist() == [4.0, 2.0, -4.0, 8.0]
    assert RepetitionPenalty(factor=2.0, window=0)(logits, torch.tensor([3, 0])).tolist() == logits.tolist()
    assert RepetitionPenalty()(logits, torch.zeros(0, dtype=torch.int64)).tolist() == logits.tolist()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"unmasking": Unmasking(0.7)}, "leave unmasking and refinement out"),
        ({"refinement": Refinement(1)}, "leave unmasking and refinement out"),
        ({"num_steps": 5}, "num_steps is 5"),
    ],
)
def test_a_rule_that_it_does_not_know_is_refused(rules: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_vocalnet().check(Decoding("it", **rules))


@pytest.mark.parametrize("kind", ["ntp", "mtp", "mdm", "set_block"])
@pytest.mark.parametrize("rules", [{"repetition": RepetitionPenalty()}, {"whole_text": True}])
def test_its_rules_are_refused_by_the_others(kind: str, rules: dict) -> None:
    with pytest.raises(UserError, match="repetition and whole_text are for talkers that read text as a prefix"):
        make_talker(kind).check(Decoding("it", **rules))


def test_rules_are_told_in_words() -> None:
    rules = Decoding("it", repetition=RepetitionPenalty(1.5, 4, ahead=False), whole_text=True)
    assert rules.rule == "last 4 tokens' logits / 1.5 for the next token, whole text first"


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        ({"num_heads": 5}, {}, "hidden_size is 2048, which 2 x num_heads"),
        ({"num_extra_layers": 15}, {}, "fewer than the block_size of 15"),
        ({"num_extra_layers": -1}, {}, "num_extra_layers is -1"),
        ({"num_encoder_layers": 0}, {}, "num_encoder_layers is 0"),
        ({"text_per_block": 0}, {}, "text_per_block is 0"),
        ({}, {"state_offset": 2}, "state_offset is 2"),
        ({}, {"decay": 0.0}, "decay is 0.0"),
        ({}, {"decay": 1.5}, "decay is 1.5"),
    ],
)
def test_nonsense_is_refused(sizes: dict, arguments: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        VocalNetTalker(VocalNetSizes(**sizes), **arguments)


@pytest.mark.parametrize("rule", [{"factor": 0.0}, {"window": -1}])
def test_a_penalty_out_of_range_is_refused(rule: dict) -> None:
    with pytest.raises(UserError, match="repetition"):
        RepetitionPenalty(**rule)


def test_a_thinker_of_another_width_is_refused() -> None:
    text = TextStates(torch.zeros(1, 2, 20), torch.zeros(1, 2, 0), torch.tensor([2]))
    with pytest.raises(UserError, match="hidden states are 20 wide, this talker's hidden_size is 12"):
        make_vocalnet()(text, torch.tensor([[1, 2]]), torch.tensor([2]), torch.Generator())
    with pytest.raises(UserError, match="hidden states are 20 wide, this talker's hidden_size is 12"):
        list(make_vocalnet().stream([KnownTextState(torch.zeros(20), torch.zeros(0))], 2, Decoding("it")))
