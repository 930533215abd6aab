"""Talkers of a size are drawn by seed, share their weights, and never say EOS."""

import pytest
import torch

from experiments.jobs.decoding.talkers import (
    DRAWN,
    TalkerSizes,
    ban_eos,
    build_talkers,
    draw_talkers,
    draw_text,
    num_text_tokens,
)
from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.decoding import Decoding
from tests.lightning_modules.talker.conftest import make_talker

CPU = torch.device("cpu")
SMALL = TalkerSizes(
    width=16, ffn_width=24, num_heads=2, num_layers=1, num_codes=20, hidden_size=12, block_size=8, num_extra_layers=2
)


def draw(seed: int, dtype: torch.dtype = torch.float32):  # noqa: ANN201
    return draw_talkers(SMALL, set(DRAWN), dtype, CPU, seed)


def test_weights_come_from_the_seed_and_are_shared() -> None:
    one, same, other = draw(1), draw(1), draw(2)
    assert set(one) == set(DRAWN)
    for name, talker in one.items():
        for key, weight in talker.state_dict().items():
            assert torch.equal(weight, same[name].state_dict()[key])
        differ = [
            not torch.equal(one, its) for one, its in zip(talker.parameters(), other[name].parameters(), strict=True)
        ]
        assert any(differ)
        assert not talker.training
    for name in ("mtp", "mdm", "set_block"):
        assert one[name].head is one["ntp"].head and one[name].backbone is one["ntp"].backbone


def test_they_are_built_in_their_precision_and_positions_stay_exact() -> None:
    talkers = draw(1, torch.bfloat16)
    assert {parameter.dtype for talker in talkers.values() for parameter in talker.parameters()} == {torch.bfloat16}
    assert talkers["mdm"].backbone.rotary.inverse_wavelengths.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_only_what_is_asked_for_is_built() -> None:
    with torch.device("meta"):
        assert set(build_talkers(SMALL, {"mdm"})) == {"mdm"}
        assert set(build_talkers(SMALL, {"vocalnet"})) == {"vocalnet"}
    with pytest.raises(UserError, match="there is no talker 'mdn' to draw"):
        build_talkers(SMALL, {"mdn"})
    with pytest.raises(UserError, match="sizes.num_codes is 0"):
        TalkerSizes(num_codes=0)


@pytest.mark.parametrize("kind", ["ntp", "mtp", "mdm", "set_block", "vocalnet"])
def test_a_talker_that_always_says_eos_says_it_no_more(kind: str) -> None:
    talker = make_talker(kind)
    heads = [talker.head] if kind != "vocalnet" else [talker.output_proj, *(x.output_proj for x in talker.mtp_layers)]
    with torch.no_grad():
        for parameter in (one for head in heads for one in head.parameters()):
            if parameter.ndim == 2:
                parameter[: talker.vocabulary.num_codes] *= 1e-3
                parameter[talker.vocabulary.eos_id] *= 1e3
    text = draw_text(talker, 6, torch.float32, CPU)

    def length() -> int:
        return sum(len(chunk.tokens) for chunk in talker.stream(text, 6, Decoding("it")))

    assert length() < 6 * talker.block_size
    ban_eos({"it": talker})
    assert length() == 6 * talker.block_size


@pytest.mark.parametrize("kind", ["ntp", "mdm", "vocalnet"])
def test_text_lasts_as_long_as_speech(kind: str) -> None:
    """A reader that is told when the text ends is not told within the blocks."""
    talker = make_talker(kind)
    ban_eos({"it": talker})
    pulled = 0

    def text():  # noqa: ANN202
        nonlocal pulled
        for state in draw_text(talker, 4, torch.float32, CPU):
            pulled += 1
            yield state
        pytest.fail("the talker asked for more text")

    chunks = talker.stream(text(), 4, Decoding("it"))
    for num_blocks in range(1, 5):
        next(chunks)
        assert pulled == num_text_tokens(talker, num_blocks)
