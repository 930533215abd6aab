"""The shipped experiments on expressive replies, every stage, at a tiny size."""

from pathlib import Path

import pytest

from experiments.engine.configuration.config import EXPERIMENTS_DIR
from experiments.engine.pipeline import execute
from experiments.engine.plan import make_plan
from experiments.kept_results import keep, read
from lightning_modules.errors import UserError

# A tokenizer of so few texts does not know the words of the others: their short tokens are more than the anchors hold.
pytestmark = [pytest.mark.filterwarnings("ignore:The replies"), pytest.mark.filterwarnings("ignore:.*transcripts have")]

FITS = (
    *("thinker_pretraining", "thinker", "expressive_codec", "expressive_recognizer", "expressive_first_talker"),
    *("expressive_talkers", "expressive_ablation"),
)
# variants that differ from those that stay by a number alone
LEFT_OUT = ("alpha_50", "alpha_90", "teacher_2", "teacher_8", "two_rounds", "on_policy")


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
    given.append("stages.expressive_ablation.callbacks.distil.init_args.num_decoded=0")
    for name in LEFT_OUT:
        given.append(f"stages.expressive_ablation.module.init_args.talkers.{name}=null")
        given.append(f"stages.expressive_ablation.callbacks.distil_{name}=null")
        given.append(f"stages.expressive_ablation_comparison.module.init_args.talkers.{name}=null")
        for steps in (4, 2, 1):
            given.append(f"stages.expressive_ablation_comparison.module.init_args.decodings.{name}_{steps}=null")
    for setting in ("num_samples=0", "num_worst=0", "num_timed=1"):
        given.append(f"stages.expressive_ablation_comparison.callbacks.comparison.init_args.{setting}")
    given.append("stages.expressive_ablation_comparison.module.init_args.max_speech_s=1.3")
    return [f"runs_dir={runs}", "stages.tokenizer.job.init_args.min_frequency=1", *given]


@pytest.mark.slow
def test_variants_of_stage_3_are_compared_behind_the_gate(tmp_path: Path) -> None:
    file = EXPERIMENTS_DIR / "expressive_ablation.yaml"
    with pytest.raises(UserError, match="the judge mishears this corpus"):
        execute(make_plan(file, overrides(tmp_path)))
    assert not list((tmp_path / "quickstart").glob("expressive_talkers-*/fitted.json")), "no talker has trained"
    (table,) = (tmp_path / "quickstart").glob("speech_gate-*/results.md")
    assert table.read_text(encoding="utf-8").count("| missed |") == 10
    plan = make_plan(file, [*overrides(tmp_path), "stages.speech_gate.job.init_args.is_required=false"])
    reused = {planned.stage.name for planned in plan.stages if planned.state == "reuse"}
    assert {"thinker", "expressive_codec", "expressive_recognizer"} <= reused
    execute(plan)
    kept = read(keep(plan.stages[-1].run.directory, tmp_path))
    variants = ("mdm", "bernoulli", "hierarchical", "bernoulli_distilled", "distilled")
    assert {f"{name}_{steps}" for name in variants for steps in (1, 2, 4)} <= kept.decodings.keys()
