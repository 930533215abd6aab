"""Mistakes planted into the shipped experiments: each is one line with its YAML path, before anything runs."""

from pathlib import Path

import pytest
import torch

from experiments import run

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
ENCODER = "stages.thinker_pretraining.module.init_args.thinker.init_args.speech_encoder"
TALKERS = "stages.talkers.module.init_args"
ROUNDS = "stages.distilled_talkers.callbacks.self_distillation"
DECODINGS = "stages.comparison.module.init_args.decodings"
SCHEDULE = "stages.talkers.callbacks.schedule"


def schedule(talker: str = "mdm", first: float = 0, last: float = 1, unit: str = "share", high: float = 0.8) -> str:
    levels = [f"{{at: {at}, scheme: block, token_ratio: [0.3, {ratio}]}}" for at, ratio in ((first, high), (last, 1))]
    arguments = f"{{talkers: [{talker}], levels: [{', '.join(levels)}], unit: {unit}}}"
    return f"{SCHEDULE}={{class_path: callbacks.masking_annealing.MaskingAnnealing, init_args: {arguments}}}"


# experiment, override, YAML path that the line begins with, what else it says
MISTAKES = [
    ("quickstart", "sed=1", "sed", "did you mean seed?"),
    ("quickstart", "seed=-1", "seed", "from 0 to 4294967295"),
    ("quickstart", "seed=1.5", "seed", "expected int"),
    ("quickstart", "threads=0", "threads", "positive"),
    ("quickstart", "checkpoint.every_s=0", "checkpoint.every_s", "positive"),
    ("quickstart", "checkpoint.every_n_steps=-1", "checkpoint.every_n_steps", "positive"),
    ("quickstart", "stages.codex.seed=1", "stages.codex", "did you mean codec?"),
    ("quickstart", "stages.codec.inputs.corpus=null", "stages.codec.inputs.corpus", "not given"),
    ("quickstart", "stages.codec.inputs.corpus=stage:corpse", "stages.codec.inputs.corpus", "did you mean corpus?"),
    ("quickstart", "stages.codec.inputs.corpus=/nowhere", "stages.codec.inputs.corpus", "no file or directory"),
    ("quickstart", "stages.codec.trainer.max_steps=-5", "stages.codec.trainer", "max_steps"),
    ("quickstart", "stages.codec.trainer.max_steps=null", "stages.codec.trainer.max_steps", "expected int"),
    ("quickstart", "stages.codec.trainer.max_stesp=1", "stages.codec.trainer.max_stesp", "did you mean max_steps?"),
    ("quickstart", "stages.codec.trainer.precision=bf17", "stages.codec.trainer.precision", "bf17"),
    ("quickstart", "stages.codec.trainer.strategy=telepathy", "stages.codec.trainer", "telepathy"),
    ("quickstart", "stages.codec.trainer.gradient_clip_val=.inf", "stages.codec.trainer.gradient_clip_val", "finite"),
    pytest.param("quickstart", "stages.codec.trainer.accelerator=gpu", "stages.codec.trainer", "gpu", marks=NO_GPU),
    ("quickstart", "stages.codec.module.init_args.learning_rate=-1", "stages.codec.module", "learning_rate"),
    ("quickstart", "stages.codec.module.init_args.learning_rate=.nan", "stages.codec.module.init_args.learning", "nan"),
    (
        "quickstart",
        "stages.codec.module.class_path=lightning_modules.speech_codec.SpeechCodex",
        "stages.codec.m",
        "did",
    ),
    ("quickstart", "stages.codec.datamodule.init_args.batch_size=0", "stages.codec.datamodule", "batch_size"),
    ("quickstart", "stages.codec.datamodule.init_args.fields=[replay]", "stages.codec.datamodule", "replay"),
    ("quickstart", "stages.corpus.job.init_args.num_train=0", "stages.corpus.job", "num_train"),
    ("quickstart", "stages.corpus.job.init_args.query_rates_wpm=[190, 145]", "stages.corpus.job", "query_rates_wpm"),
    ("quickstart", f"{ENCODER}.init_args.num_heads=5", ENCODER, "num_heads"),
    ("quickstart", "stages.thinker.module.init_args.warmup_steps=-1", "stages.thinker.module", "warmup_steps"),
    (
        "quickstart",
        "stages.thinker.module.init_args.thinker.init_args.attribute=thinkre",
        "stages.thinker.module.init_args.thinker",
        "has no thinkre",
    ),
    (
        "quickstart",
        f"{TALKERS}.talkers.ntp.init_args.backbone.init_args.num_heads=7",
        f"{TALKERS}.talkers.ntp.init_args.backbone",
        "7 heads",
    ),
    (
        "quickstart",
        f"{TALKERS}.talkers.ntp.init_args.anchors.init_args.width=190",
        "stages.talkers.module",
        "anchors",
    ),
    (
        "quickstart",
        f"{TALKERS}.talkers.mdm.init_args.masking.init_args.high=1.5",
        f"{TALKERS}.talkers.mdm.init_args.masking",
        "1.5",
    ),
    ("quickstart", f"{TALKERS}.talker_learning_rates.mdn=1.0e-3", "stages.talkers.module", "mdn"),
    ("quickstart", f"{TALKERS}.talker_learning_rates.mdm=-1.0", "stages.talkers.module", "talker_learning_rates.mdm"),
    ("quickstart", schedule(first=0.5), SCHEDULE, "0.5"),
    ("quickstart", schedule(high=1.5), SCHEDULE, "1.5"),
    ("quickstart", schedule(talker="ntp"), SCHEDULE, "ntp"),
    ("quickstart", schedule(last=850, unit="steps"), SCHEDULE, "850"),
    ("quickstart", f"{ROUNDS}.init_args.rounds=[{{alpha: 2}}]", ROUNDS, "alpha"),
    ("quickstart", f"{ROUNDS}.init_args.talkers=[mdn]", ROUNDS, "mdn"),
    ("quickstart", f"{ROUNDS}.init_args.rounds=[{{max_steps: 400}}, {{}}]", ROUNDS, "150"),
    ("quickstart", f"{DECODINGS}.mtp_2_tokens.num_steps=7", "stages.comparison.module", "decodings.mtp_2_tokens:"),
    ("quickstart", f"{DECODINGS}.mdm_4.talker=mdn", "stages.comparison.module", "decodings.mdm_4: there is no talker"),
    ("quickstart", f"{DECODINGS}.mdm_4.num_step=4", f"{DECODINGS}.mdm_4.num_step", "did you mean num_steps?"),
    (
        "quickstart",
        f"{DECODINGS}.mdm_16_refined.unmasking.confidence_threshold=1.5",
        f"{DECODINGS}.mdm_16_refined.unmasking",
        "1.5",
    ),
    ("quickstart", "stages.comparison.module.init_args.vocoder=null", "stages.comparison.module", "vocoder"),
    ("streaming", "stages.kill_trials.job.init_args.num_kills=-1", "stages.kill_trials.job", "num_kills"),
    (
        "streaming",
        "stages.streamed_talkers.datamodule.init_args.max_tokens=0",
        "stages.streamed_talkers.datamodule",
        "max_tokens",
    ),
    (
        "corpus_at_scale",
        "stages.shards.job.init_args.rules={num_codes: 0}",
        "stages.shards.job.init_args.rules",
        "num_codes",
    ),
    ("corpus_at_scale", "stages.shards.job.init_args.num_workers=-1", "stages.shards.job", "num_workers"),
    ("corpus_at_scale", "stages.checked_shards.job.init_args.seed=-1", "stages.checked_shards.job", "seed"),
    ("codec", "seed=1", "inputs.corpus", "not given"),
    ("speak", "text=hello", "inputs.run", "make one by python experiments/run.py quickstart"),
    ("speak", "query=/nowhere.wav", "inputs.run", "no finished run of comparison"),
]


@pytest.mark.parametrize(("experiment", "override", "path", "text"), MISTAKES)
def test_a_planted_mistake_is_one_line_before_anything_runs(
    experiment: str, override: str, path: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([experiment, override, f"runs_dir={tmp_path}/runs"]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {path}") and text in line, line
    assert printed.out == ""
    assert not (tmp_path / "runs").exists()
