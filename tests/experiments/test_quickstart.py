"""The shipped quickstart, every stage, at a tiny size, and the experiments that build on it."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.engine.artifacts import load_trained, read_config
from experiments.engine.configuration.builder import build
from experiments.engine.configuration.config import EXPERIMENTS_DIR
from experiments.engine.pipeline import execute
from experiments.engine.plan import make_plan
from experiments.engine.stage import StageResult

# A tokenizer of so few texts does not know the words of the others: their short tokens are more than the anchors hold.
pytestmark = [pytest.mark.filterwarnings("ignore:The replies"), pytest.mark.filterwarnings("ignore:.*transcripts have")]

FITS = ("codec", "recognizer", "thinker_pretraining", "thinker", "first_talker", "talkers", "distilled_talkers")
KEYS = {
    "name", "talker", "steps", "rule", "num_examples", "wer_micro", "wer_macro", "wer_gold_micro", "text_exact_match",
    "tokens_per_s", "rtf", "forwards_per_block", "first_chunk_ms", "length_ratio", "failures", "voices",
}  # fmt: skip
DECODINGS = [
    "ntp", "mtp_2_tokens", "mdm_16", "mdm_4", "mdm_1", "mdm_16_refined", "mdm_distilled_4", "mdm_distilled_1",
    "mdm_distilled_16_refined",
]  # fmt: skip


# Stages that speak test dialogues beside the corpus.
HAVE_A_TEST_CORPUS = ("comparison", "decoding", "neural_comparison", "fair_comparison", "paper_comparison")


def tiny_overrides(runs: Path, fits: tuple[str, ...] = FITS, speaks: str = "comparison") -> list[str]:
    corpus = {"num_train": 24, "num_validation": 2, "num_test": 2, "num_workers": 0}
    overrides = [f"stages.corpus.job.init_args.{key}={value}" for key, value in corpus.items()]
    if speaks in HAVE_A_TEST_CORPUS:
        overrides += [f"stages.test_corpus.job.init_args.{key}" for key in ("num_test=2", "num_workers=0")]
    for stage in fits:
        overrides += [f"stages.{stage}.trainer.max_steps=2", f"stages.{stage}.trainer.val_check_interval=2"]
        overrides += [f"stages.{stage}.datamodule.init_args.batch_size=4"]
    overrides += [f"stages.{speaks}.module.init_args.max_speech_s=1.3"]
    return [f"runs_dir={runs}", "stages.tokenizer.job.init_args.min_frequency=1", *overrides]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StageResult]]:
    folder = tmp_path_factory.mktemp("runs")
    plan = make_plan(EXPERIMENTS_DIR / "quickstart.yaml", tiny_overrides(folder))
    return folder, execute(plan, keep_objects=True)


@pytest.fixture(scope="module")
def runs(results: tuple[Path, list[StageResult]]) -> Path:
    return results[0]


def run_of(runs: Path, stage: str, talker: str) -> Path:
    """The run of a stage that has a TensorBoard run of this talker."""
    (run,) = (path.parents[1] for path in (runs / "quickstart").glob(f"{stage}-*/tensorboard/{talker}"))
    return run


@pytest.fixture(scope="module")
def comparison_run(runs: Path) -> Path:
    (run,) = (runs / "quickstart").glob("comparison-*")
    return run


def tags_of(run: Path, name: str) -> dict:
    events = EventAccumulator(str(run / "tensorboard" / name))
    events.Reload()
    return events.Tags()


def test_the_results_have_a_row_for_each_decoding_and_reference(comparison_run: Path) -> None:
    rows = json.loads((comparison_run / "results.json").read_text())
    assert [row["name"] for row in rows] == ["original audio", "codec resynthesis", *DECODINGS]
    assert {row["name"]: row["rule"] for row in rows}["mdm_16_refined"] == "refined after 1"
    for row in rows:
        assert row.keys() >= KEYS
        assert row["num_examples"] == 2
        if row["steps"] is not None:
            parts = row["first_chunk_ms"]
            assert parts.keys() == {"speech_encoder", "thinker", "talker", "vocoder", "total"}
            assert row["forwards_per_block"] <= row["steps"], "finished blocks are committed on the way"
    table = (comparison_run / "summary.txt").read_text()
    assert "codec resynthesis" in table and "mdm" in table
    last = table.splitlines()[-1]
    assert f"open {comparison_run / 'comparison.html'} in a browser" in last
    assert last.endswith(f"python experiments/run.py live inputs.run={comparison_run}")
    assert 4e6 < (comparison_run / "comparison.html").stat().st_size < 15e6


def test_replies_can_be_heard_and_seen(comparison_run: Path) -> None:
    wavs = sorted(comparison_run.glob("audio/*/*.wav"))
    assert {wav.stem for wav in wavs} >= {"original-audio", "codec-resynthesis", "ntp", "mdm_4"}
    assert all(soundfile.info(wav).samplerate == 16_000 for wav in wavs)
    assert mean_of_columns(comparison_run / "pareto.png") > 0.01, "the picture shows something"
    heard = {name: tags_of(comparison_run, name) for name in ("ntp", "mdm", "reference")}
    assert heard["ntp"]["audio"] == heard["mdm"]["audio"] != []
    orders = {tag for tag in heard["mdm"]["images"] if tag.startswith("unmasking/")}
    assert heard["ntp"]["images"] == [tag for tag in heard["mdm"]["images"] if tag not in orders] != []
    assert len(orders) == 2, "one picture a dialogue"
    assert {"decode/wer_micro", "decode/rtf"} <= set(heard["ntp"]["scalars"]) == set(heard["mdm"]["scalars"])
    assert len(heard["reference"]["audio"]) == 4


def mean_of_columns(picture: Path) -> float:
    """How much the columns of a picture differ from its background: 0 for one of a single colour."""
    pixels = imread(picture)[..., :3]
    return float(abs(pixels - pixels[0, 0]).mean())


def test_curves_of_talkers_have_equal_tags(runs: Path) -> None:
    run = run_of(runs, "talkers", "mtp")
    curves = [set(tags_of(run, name)["scalars"]) for name in ("ntp", "mtp", "mdm")]
    assert curves[0] == curves[1] == curves[2] >= {"train/nll", "val/nll"}
    distilled = run_of(runs, "distilled_talkers", "mdm")
    assert set(tags_of(distilled, "mdm")["scalars"]) >= curves[0] | {"distillation/round"}


def test_the_distilled_talker_starts_from_the_trained_one(runs: Path) -> None:
    before = load_trained(run_of(runs, "talkers", "mtp"), "talkers.mdm").parameters()
    after = load_trained(run_of(runs, "distilled_talkers", "mdm"), "talkers.mdm").parameters()
    distances = [float((a - b).detach().abs().max()) for a, b in zip(before, after, strict=True)]
    assert 0 < max(distances) < 0.01, "two small steps away"


@pytest.mark.parametrize(
    ("name", "made", "decodings"),
    [
        pytest.param(
            *("ablation", ("talkers", "ablation"), {"bernoulli_4", "bernoulli_distilled_1", "two_rounds_4"}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("decoding", ("decoding",), {"mdm_16", "mdm_16_threshold", "mdm_16_entropy", "mdm_16_drafted_in_4"}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("paper_masking", ("talkers", "comparison"), {"mdm_4", "mdm_clean_context_4"}), marks=pytest.mark.slow
        ),
        pytest.param(
            *("neural_voice", ("neural_vocoder", "vocoder_comparison", "neural_comparison"), {"ntp", "mdm_16_refined"}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_experiments_on_the_quickstart_reuse_its_stages(
    runs: Path, name: str, made: tuple[str, ...], decodings: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fits = (*FITS[:-1], *(stage for stage in made if stage in ("ablation", "neural_vocoder")))
    overrides = tiny_overrides(runs, fits, made[-1])
    for kept in ("num_samples", "num_worst"):  # the quickstart has drawn some
        overrides += [f"stages.{made[-1]}.callbacks.comparison.init_args.{kept}=0"]
    if name == "ablation":
        rounds = "[{max_steps: 1, alpha: 0.7, num_steps: 4}, {alpha: 0.7, num_steps: 4}]"
        overrides.append(f"stages.ablation.callbacks.distil_two_rounds.init_args.rounds={rounds}")
    plan = make_plan(EXPERIMENTS_DIR / f"{name}.yaml", overrides)
    assert tuple(planned.stage.name for planned in plan.stages if planned.state != "reuse") == made
    execute(plan)
    rows = json.loads((plan.stages[-1].run.directory / "results.json").read_text())
    assert decodings <= {row["name"] for row in rows}
    assert "codec resynthesis" in capsys.readouterr().out


PAPER_TALKERS, PAPER_DECODINGS = ("paper_mdm", "paper_mdm_clean"), {"paper_mdm_4", "paper_mdm_clean_1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prefix", "chooses", "compares", "talkers", "decodings"),
    [
        (
            "fair_budgets",
            "",
            "rate_choice",
            "fair_comparison",
            ("ntp", "mtp", "mdm", *PAPER_TALKERS),
            {"ntp", "mtp_2_tokens", "mdm_4"} | PAPER_DECODINGS,
        ),
        ("paper_budgets", "paper_", "paper_choice", "paper_comparison", PAPER_TALKERS, PAPER_DECODINGS),
    ],
)
def test_each_talker_is_compared_at_the_best_of_its_trials(
    runs: Path, name: str, prefix: str, chooses: str, compares: str, talkers: tuple[str, ...], decodings: set[str]
) -> None:
    trials = [f"{prefix}trial_{number}" for number in (1, 2, 3)]
    overrides = tiny_overrides(runs, (*FITS[:5], *trials), compares)
    plan = make_plan(EXPERIMENTS_DIR / f"{name}.yaml", overrides)
    made = [planned.stage.name for planned in plan.stages if planned.state != "reuse"]
    assert made == [*trials, chooses, compares]
    execute(plan)
    run_of_stage = {planned.stage.name: planned.run.directory for planned in plan.stages}
    choice = json.loads((run_of_stage[chooses] / "choice.json").read_text())
    compared = load_trained(run_of_stage[compares])
    assert tuple(choice["talkers"]) == talkers == tuple(compared.talkers)
    for talker, one in choice["talkers"].items():
        weights = torch.load(run_of_stage[chooses].parent / one["weights"], weights_only=True)["state_dict"]
        for key, weight in compared.talkers[talker].state_dict().items():
            assert torch.equal(weight, weights[f"talkers.{talker}.{key}"])
    assert decodings <= {row["name"] for row in json.loads((run_of_stage[compares] / "results.json").read_text())}


@pytest.mark.slow
def test_talkers_train_on_shards(runs: Path) -> None:
    overrides = tiny_overrides(runs, FITS[:5], "streamed_talkers")[:-1]
    overrides += [f"stages.{stage}.job.init_args.num_workers=0" for stage in ("shards", "validation_shards")]
    overrides += ["stages.kill_trials=null", "stages.checked_shards.job.init_args.num_workers=0"]
    overrides += [f"stages.streamed_talkers.trainer.{key}=2" for key in ("max_steps", "val_check_interval")]
    overrides += [f"stages.streamed_talkers.datamodule.init_args.{end}" for end in ("max_examples=4", "num_workers=0")]
    plan = make_plan(EXPERIMENTS_DIR / "streaming.yaml", overrides)
    made = [planned.stage.name for planned in plan.stages if planned.state != "reuse"]
    assert made == ["shards", "validation_shards", "checked_shards", "streamed_talkers"]
    execute(plan)
    run = plan.stages[-1].run.directory
    assert set(tags_of(run, "ntp")["scalars"]) == set(tags_of(run, "mdm")["scalars"]) >= {"train/nll", "val/nll"}


@pytest.mark.parametrize("stage", FITS)
def test_only_what_is_meant_to_train_has_moved(results: tuple[Path, list[StageResult]], stage: str) -> None:
    """By value, against the same stage built again; by name, every shipped stage is in engine/test_what_trains.py."""
    (result,) = (one for one in results[1] if one.name == stage)
    config = read_config(result.run.directory)
    with isolate_rng():
        seed_everything(config["seed"], verbose=False)
        before = dict(build(config["module"], "module").named_parameters())
    after = dict(result.objects["module"].named_parameters())
    moved = {name for name, one in after.items() if not torch.equal(one.detach().cpu(), before[name].detach())}
    trains = {name for name, one in after.items() if one.requires_grad}
    assert moved <= trains and len(moved) > 0.9 * len(trains)  # what no batch has used has no gradient
    assert {name.split(".")[1] for name in moved} == {name.split(".")[1] for name in trains}


def test_a_seed_of_the_talkers_alone_leaves_the_rest_as_it_is(runs: Path) -> None:
    plan = make_plan(EXPERIMENTS_DIR / "quickstart.yaml", [*tiny_overrides(runs), "talker_seed=2"])
    made = {planned.stage.name: planned for planned in plan.stages if planned.state != "reuse"}
    assert list(made) == ["first_talker", "talkers", "distilled_talkers", "comparison"]
    for planned in made.values():
        config = planned.config
        assert config["seed"] == config["module"]["init_args"]["seed"] == 2, "weights and masks"
        assert config["datamodule"]["init_args"].get("seed", 2) == 2, "the order of the batches"
    again = make_plan(EXPERIMENTS_DIR / "quickstart.yaml", [*tiny_overrides(runs), "seed=2"])
    assert {planned.state for planned in again.stages} == {"to do"}, "seed=2 makes all again"


def test_the_dialogues_of_the_test_are_in_no_training(runs: Path) -> None:
    (corpus,), (test,) = ((runs / "quickstart").glob(f"{name}-*/spoken_examples") for name in ("corpus", "test_corpus"))
    taught = {item["conversations"][1]["value"] for item in json.loads((corpus / "train.json").read_text())}
    asked = {item["conversations"][1]["value"] for item in json.loads((test / "test.json").read_text())}
    assert len(taught) == 24 and len(asked) == 2 and not taught & asked


def test_a_second_run_reuses_every_stage(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(make_plan(EXPERIMENTS_DIR / "quickstart.yaml", tiny_overrides(runs)))
    shown = capsys.readouterr().out
    assert shown.count(": reused") == 14
    assert "codec resynthesis" in shown, "the table is printed again"
