"""The shipped experiments on expressive replies, at a tiny size, up to the gate that such models do not pass."""

from pathlib import Path

import pytest

from experiments.engine.configuration.config import EXPERIMENTS_DIR
from experiments.engine.pipeline import execute
from experiments.engine.plan import make_plan
from lightning_modules.errors import UserError

# A tokenizer of so few texts does not know the words of the others: their short tokens are more than the anchors hold.
pytestmark = [pytest.mark.filterwarnings("ignore:The replies"), pytest.mark.filterwarnings("ignore:.*transcripts have")]

FITS = (
    *("thinker_pretraining", "thinker", "expressive_codec", "expressive_recognizer", "expressive_first_talker"),
    *("expressive_talkers", "expressive_variants"),
)


def overrides(runs: Path) -> list[str]:
    corpus = {"num_train": 24, "num_validation": 4, "num_test": 4, "num_workers": 0}
    given = [
        f"stages.{name}.job.init_args.{key}={value}"
        for name in ("corpus", "expressive_corpus")
        for key, value in corpus.items()
    ]
    given += [
        f"stages.expressive_test.job.init_args.{key}={value}"
        for key, value in {"num_test": 4, "num_workers": 0}.items()
    ]
    for stage in FITS:
        given += [f"stages.{stage}.trainer.max_steps=2", f"stages.{stage}.trainer.val_check_interval=2"]
        given += [f"stages.{stage}.datamodule.init_args.batch_size=4"]
    return [f"runs_dir={runs}", "stages.tokenizer.job.init_args.min_frequency=1", *given]


@pytest.mark.slow
def test_no_talker_trains_behind_a_closed_gate(tmp_path: Path) -> None:
    file = EXPERIMENTS_DIR / "expressive_ablation.yaml"
    with pytest.raises(UserError, match="the judge mishears this corpus"):
        execute(make_plan(file, overrides(tmp_path)))
    assert not list((tmp_path / "quickstart").glob("expressive_talkers-*/fitted.json")), "no talker has trained"
    (table,) = (tmp_path / "quickstart").glob("speech_gate-*/results.md")
    assert table.read_text(encoding="utf-8").count("| missed |") == 10
