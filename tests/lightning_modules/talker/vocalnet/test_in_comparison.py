"""A released talker beside ours: in the comparison, in training, and in the shipped stage."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from callbacks.comparison.comparison import Comparison
from datamodules.batch import SpokenBatch
from experiments.engine.plan import make_plan
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.vocalnet.vocalnet_talker import VocalNetTalker
from tests.callbacks.comparison.test_comparison import Listener
from tests.lightning_modules.talker.conftest import NUM_CODES, build_talker
from tests.lightning_modules.talker.vocalnet.tiny import END_OF_TEXT_ID, write_checkpoint
from tests.lightning_modules.test_speech_llm import ToneVocoder, fit, make_batch, make_thinker

DECODINGS = {
    "ntp": Decoding("ntp"),
    "vocalnet": Decoding("vocalnet"),
    "vocalnet_whole_text": Decoding("vocalnet", 3, whole_text=True),
}


def make_llm(path: Path) -> SpeechLLM:
    thinker = make_thinker()
    write_checkpoint(path, seed=1, eos_bias=-20.0, hidden_size=thinker.hidden_size, num_codes=NUM_CODES)
    ntp = build_talker("ntp", thinker.hidden_size, thinker.embedding_size)
    ntp.reset_parameters(torch.Generator().manual_seed(0))
    talkers = {"ntp": ntp, "vocalnet": VocalNetTalker.from_checkpoint(path, END_OF_TEXT_ID)}
    return SpeechLLM(
        thinker, talkers, draw_weights=False, vocoder=ToneVocoder(), decodings=DECODINGS, max_text_tokens=8,
        max_speech_s=2.0, learning_rate=1e-3, warmup_steps=2, log_every_n_steps=1,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_it_is_compared_with_ours(tmp_path: Path) -> None:
    llm = make_llm(tmp_path / "vocalnet")
    spoken = llm.talkers["vocalnet"].state_dict()
    before = {name: value.clone() for name, value in spoken.items()}
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[Comparison(Listener(), 1)],
        default_root_dir=tmp_path,
    )  # fmt: skip
    batch: SpokenBatch = make_batch(0)
    trainer.test(llm, DataLoader([batch], batch_size=None), verbose=False)
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert {"ntp", "vocalnet", "vocalnet_whole_text"} <= set(rows)
    assert "whole text first" in (tmp_path / "summary.txt").read_text()
    assert {row["talker"] for row in rows.values()} >= {"ntp", "vocalnet"}
    assert all(torch.equal(value, spoken[name]) for name, value in before.items()), "a comparison trains nothing"


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_it_is_tuned_beside_ours(tmp_path: Path) -> None:
    llm = make_llm(tmp_path)
    before = {name: value.clone() for name, value in llm.talkers["vocalnet"].state_dict().items()}
    fit(llm)
    after = llm.talkers["vocalnet"].state_dict()
    assert [name for name, value in before.items() if torch.equal(value, after[name])] == []


def test_its_weights_are_never_drawn_again_beside_talkers_whose_weights_are(tmp_path: Path) -> None:
    llm = make_llm(tmp_path)
    before = {name: value.clone() for name, value in llm.talkers.state_dict().items()}
    talkers = {name: talker for name, talker in llm.talkers.items() if isinstance(talker, Talker)}
    again = SpeechLLM(llm.thinker, talkers, seed=5).talkers.state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, again[name])}
    assert changed == {"ntp"}


def test_the_shipped_stage_builds_behind_the_quickstart(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "vocalnet", hidden_size=128, num_codes=1000)
    experiments = Path(__file__).parents[4] / "experiments"
    file = tmp_path / "beside_ours.yaml"
    file.write_text(
        f"base: {experiments}/quickstart.yaml\n"
        "stages:\n"
        "  comparison:\n"
        f"    base: {experiments}/stages/vocalnet_comparison.yaml\n"
        f"    inputs: {{vocalnet: {tmp_path}/vocalnet}}\n"
    )
    plan = make_plan(file, [f"runs_dir={tmp_path}"])
    config = plan.stages[-1].config["module"]["init_args"]
    assert {"vocalnet", "vocalnet_whole_text", "ntp", "mdm_4"} <= set(config["decodings"])
    assert plan.stages[-1].unchecked == []
