"""Dependence of tokens in a block, logged at each validation under the tags that the function gives."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.block_dependence import BlockDependence, score_batch
from lightning_modules.errors import UserError
from tests.lightning_modules.test_speech_llm import fit, make_batch, make_llm

# Lightning warns of the frozen thinker and of loaders without worker processes.
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


def test_each_validation_logs_what_the_function_gives(tmp_path: Path) -> None:
    llm = make_llm("ntp", "set_block")
    loggers = [TensorBoardLogger(tmp_path, name=name, version="") for name in ("ntp", "set_block")]
    fit(llm, 2, callbacks=[BlockDependence(["set_block"])], logger=loggers, val_check_interval=1)
    events = EventAccumulator(str(tmp_path / "set_block"))
    events.Reload()
    logged = events.Scalars("val/block_dependence")
    expected = score_batch(llm.eval(), ["set_block"], make_batch(99))["set_block"]
    assert len(logged) == 2 and logged[0].value != logged[1].value
    assert logged[-1].value == pytest.approx(expected.dependence(), rel=1e-4)
    assert events.Scalars("val/block_nll/8_steps")[-1].value == pytest.approx(expected.per_token(8), rel=1e-4)


def test_talkers_that_mask_nothing_are_refused_up_front() -> None:
    for names, message in ((["ntp"], "'ntp' masks nothing"), (["mdn"], "no talker 'mdn'")):
        with pytest.raises(UserError, match=f"block dependence: .*{message}"):
            BlockDependence(names).check(make_llm("ntp"), 4)
    with pytest.raises(UserError, match="names no talkers"):
        BlockDependence([])
