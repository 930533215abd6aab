"""A decoding is a value: it names itself, and refuses what cannot be."""

import pytest

from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.unmasking import Unmasking


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({}, ""),
        ({"unmasking": Unmasking(), "sampler": TokenSampler()}, ""),
        ({"unmasking": Unmasking(0.7)}, "threshold 0.7"),
        ({"unmasking": Unmasking(0.7), "refinement": Refinement(4)}, "threshold 0.7, refined after 4"),
        ({"unmasking": Unmasking(entropy_bound=1.0)}, "entropy bound 1"),
        ({"sampler": TokenSampler(0.8, 20), "fused_commit": False}, "temperature 0.8 of the top 20, separate commit"),
    ],
)
def test_a_row_that_refines_says_so(rules: dict, words: str) -> None:
    assert Decoding("mdm", 8, **rules).rule == words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"num_steps": 4, "refinement": Refinement(4)}, "4 of 4 steps draft, and none is left to refine in"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"decoding of mdm: {message}"):
        Decoding("mdm", **arguments)


def test_a_threshold_may_leave_steps_to_refine_in() -> None:
    assert Decoding("mdm", 4, Unmasking(0.7), Refinement(4)).num_steps == 4


def test_equal_decodings_are_equal_values() -> None:
    assert Decoding("mdm", 4, Unmasking(0.7)) == Decoding("mdm", 4, Unmasking(0.7)) != Decoding("mdm", 4)
    assert len({Decoding("mdm", 4), Decoding("mdm", 4), Decoding("ntp", 4)}) == 2
