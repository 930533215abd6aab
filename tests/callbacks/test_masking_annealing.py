"""Masking levels are a function of the global step, in training only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.masking_annealing import MaskingAnnealing
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from tests.lightning_modules.test_speech_llm import fit, make_llm

# Lightning warns of the frozen thinker and of loaders without worker processes.
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

LEVELS = [
    {"at": 0, "scheme": "global", "token_ratio": [0.3, 0.8]},
    {"at": 0.5, "scheme": "hierarchical", "block_ratio": [0.5, 0.5], "token_ratio": [0.2, 0.4]},
    {"at": 1, "scheme": "hierarchical", "block_ratio": [1.0, 1.0], "token_ratio": [0.6, 0.8]},
]


class Spy:
    """Records which masking a talker used, in training and in evaluation."""

    def __init__(self, llm: SpeechLLM, name: str) -> None:
        self.seen: list[tuple[bool, str, Any]] = []
        talker = llm.talkers[name]
        whole = talker.forward

        def forward(*arguments: Any) -> Any:
            masking: Any = talker.masking if talker.training else talker.evaluation_masking
            self.seen.append((talker.training, type(masking).__name__, getattr(masking, "token_ratio", None)))
            return whole(*arguments)

        talker.forward = forward


def test_training_moves_along_the_schedule_and_validation_stays(tmp_path: Path) -> None:
    llm = make_llm("ntp", "mdm")
    spy = Spy(llm, "mdm")
    loggers = [TensorBoardLogger(tmp_path, name=name, version="") for name in ("ntp", "mdm")]
    fit(llm, 4, callbacks=[MaskingAnnealing(["mdm"], LEVELS)], logger=loggers)
    trained = [(name, ratio) for training, name, ratio in spy.seen if training]
    assert [name for name, _ in trained] == ["GlobalBernoulli"] * 2 + ["HierarchicalBlockwise"] * 2
    assert trained[2][1] == pytest.approx((0.2, 0.4)) and trained[3][1] == pytest.approx((0.4, 0.6))
    evaluated = {name for training, name, _ in spy.seen if not training}
    assert evaluated == {"BlockBernoulli"}, "the masking that the talker was made with"
    events = EventAccumulator(str(tmp_path / "mdm"))
    events.Reload()
    assert [event.value for event in events.Scalars("masking/scheme")] == [0, 0, 2, 2]
    assert [event.value for event in events.Scalars("masking/token_ratio_low")] == pytest.approx([0.3, 0.3, 0.2, 0.4])


def test_levels_depend_on_the_step_alone() -> None:
    by_share = MaskingAnnealing(["mdm"], LEVELS)
    by_steps = MaskingAnnealing(["mdm"], [{**level, "at": 40 * level["at"]} for level in LEVELS], unit="steps")
    for step in (0, 19, 20, 25, 39, 7):
        assert by_share.levels_at(step, 40) == by_steps.levels_at(step, 40)


@pytest.mark.parametrize(
    ("talkers", "arguments", "message"),
    [
        (["mdn"], {}, "no talker 'mdn'"),
        (["ntp"], {}, "'ntp' masks nothing"),
        (
            ["mdm"],
            {"unit": "steps", "levels": [LEVELS[0], {**LEVELS[1], "at": 9}]},
            "step 9, but training ends after 4",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_the_training_is_refused_up_front(
    talkers: list[str], arguments: dict[str, Any], message: str
) -> None:
    annealing = MaskingAnnealing(talkers, **{"levels": LEVELS, **arguments})
    llm = make_llm("ntp", "mdm")
    with pytest.raises(UserError, match=message):
        annealing.check(llm, max_steps=4)
    with pytest.raises(UserError, match=message):
        fit(llm, 4, callbacks=[annealing])


def test_what_is_not_known_yet_is_not_refused() -> None:
    """Epochs have no known number of steps before the data is there."""
    by_steps = MaskingAnnealing(["mdm"], [LEVELS[0], {**LEVELS[1], "at": 9}], unit="steps")
    for annealing in (by_steps, MaskingAnnealing(["mdm"], LEVELS)):
        annealing.check(make_llm("mdm"), max_steps=float("inf"))
    by_steps.check(make_llm("mdm"), max_steps=10)
    with pytest.raises(UserError, match="no talker 'mdm'"):
        by_steps.check(make_llm("ntp"), max_steps=float("inf"))


def test_a_share_above_one_a_wrong_unit_and_no_talkers_are_refused() -> None:
    with pytest.raises(ValueError, match="at 2 of the training"):
        MaskingAnnealing(["mdm"], [LEVELS[0], {**LEVELS[1], "at": 2}])
    with pytest.raises(ValueError, match="no unit 'epochs'"):
        MaskingAnnealing(["mdm"], LEVELS, unit="epochs")
    with pytest.raises(ValueError, match="no talkers"):
        MaskingAnnealing([], LEVELS)


def test_a_masked_loss_differs_once_the_levels_do() -> None:
    losses = {}
    for name, callbacks in (("fixed", []), ("annealed", [MaskingAnnealing(["mdm"], LEVELS)])):
        llm = make_llm("mdm")
        fit(llm, 4, callbacks=callbacks)
        losses[name] = torch.cat([value.flatten() for value in llm.talkers["mdm"].state_dict().values()])
    assert not torch.equal(losses["fixed"], losses["annealed"])
