"""The experiment that fine-tunes the quickstart's models by LoRA, with very little of everything."""

import json
from pathlib import Path

import pytest
import torch

from datamodules.formats.released_layout import ReleasedLayout
from datamodules.synthetic.lexicon import NEW_NAMES
from experiments.engine.artifacts import load_trained
from experiments.run import main
from tests.experiments.test_judges import CORPORA, TESTS
from tests.experiments.test_judges import FITS as JUDGES
from tests.experiments.test_quickstart import FITS, tiny_overrides

PARTS = ["talkers.mdm", "thinker.adaptor", "thinker.language_model", "thinker.speech_encoder"]
FINETUNED = ("finetuned_thinker", "finetuned_talkers")
LEARNED_BESIDE = ("more_names_corpus", "old_names_corpus")
COMPARISONS = ("new_names_comparison", "old_names_comparison")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The replies"),
    pytest.mark.filterwarnings("ignore:.*transcripts have"),
]


def test_an_adapter_is_trained_and_compared_with_its_base(tmp_path: Path) -> None:
    fits = tuple(name for name in FITS if name != "distilled_talkers")
    overrides = tiny_overrides(tmp_path, fits, "new_names_comparison")
    overrides.append("stages.old_names_comparison.module.init_args.max_speech_s=1.3")
    counts = {"num_train": 24, "num_validation": 2, "num_test": 2, "num_workers": 0}
    for stage in (*CORPORA[1:], *LEARNED_BESIDE):
        overrides += [f"stages.{stage}.job.init_args.{key}={value}" for key, value in counts.items()]
    for stage in {*JUDGES, *FINETUNED} - {"codec"}:
        overrides += [f"stages.{stage}.trainer.max_steps=2", f"stages.{stage}.trainer.val_check_interval=2"]
    assert main(["finetune", *overrides]) == 0
    run_of = {run.name.rsplit("-", 1)[0]: run for run in (tmp_path / "quickstart").iterdir() if run.is_dir()}

    found: list[str] = []
    for stage in FINETUNED:
        adapted = {one.name for one in (run_of[stage] / "adapters" / "last").iterdir()}
        found += adapted
        counts_of = json.loads((run_of[stage] / "parameters.json").read_text())
        assert {part for part, one in counts_of.items() if one["trainable"]} == adapted
        assert all(one["trainable"] < one["all"] for one in counts_of.values())
        keys = torch.load(run_of[stage] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert keys and all(".lora_" in key or ".modules_to_save." in key for key in keys)
    assert sorted(found) == PARTS
    replies = {
        name: {
            item.reply_text
            for split in ("train", "validation", "test")
            for item in ReleasedLayout(run_of[name] / f"spoken_examples/{split}.json", run_of[name], fields=()).items
        }
        for name in ("new_names_corpus", *LEARNED_BESIDE, *TESTS)
    }
    for corpus in LEARNED_BESIDE:
        assert not replies[corpus] & (replies["old_names_test"] | replies["new_names_test"])
    assert not replies["more_names_corpus"] & replies["new_names_corpus"]
    assert all(any(name in reply for name in NEW_NAMES) for reply in replies["more_names_corpus"])
    for comparison in COMPARISONS:
        rows = {row["name"]: row for row in json.loads((run_of[comparison] / "results.json").read_text())}
        alone = {"new_names_comparison": "thinker_alone", "old_names_comparison": "names"}[comparison]
        assert {"mdm_16_refined", "mdm_16_refined_voice", f"mdm_16_refined_{alone}"} <= set(rows)
        assert {"codec resynthesis", "codec resynthesis by voice"} <= set(rows)
        for row in rows.values():
            assert sum(row["voices"].values()) == pytest.approx(1.0) and row["wer_gold_micro"] is not None
    llm = load_trained(run_of["new_names_comparison"])
    assert llm.adapters.names == ["voice", "names", "thinker_alone"]
    assert llm.adapters.parts_of("voice") == [*PARTS, "vocoder.codec"] and llm.adapters.parts_of("names") == PARTS
    assert all(len(one) == 1 for one in llm.thinker.prompt.encode_replies(NEW_NAMES)), "a name is one token"
    assert llm.adapters.parts_of("thinker_alone") == PARTS[1:]
