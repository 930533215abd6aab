"""States of another thinker or adapter are refused before training; those of this one train."""

from pathlib import Path

import lightning as L
import pytest

from datamodules.formats.released_layout import ReleasedLayout
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from experiments.jobs.text_state_writer import TextStateWriter
from lightning_modules.adapters.lora import LoraSettings, add_adapter
from lightning_modules.errors import UserError
from tests.datamodules.tiny_corpus import write_split
from tests.lightning_modules.talker.conftest import NUM_CODES
from tests.lightning_modules.test_speech_llm import make_llm, make_thinker

# where a batch is moved is the modules' business
pytestmark = pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device` in `LightningModule`")


@pytest.fixture
def data(tmp_path: Path) -> SpokenDialogueDataModule:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 4, num_codes=NUM_CODES)
    layouts = {
        split: ReleasedLayout(tmp_path / "spoken_examples" / f"{split}.json", tmp_path, fields=["query"])
        for split in ("train", "validation")
    }
    TextStateWriter(make_thinker(), layouts, bfloat16=False).run(tmp_path / "states")
    return SpokenDialogueDataModule(
        str(tmp_path), text_states_root=str(tmp_path / "states"), fields=["text_states", "units"], batch_size=4
    )


def fit(llm: L.LightningModule, data: L.LightningDataModule) -> None:
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(llm, datamodule=data)


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The replies .* have more text than the anchors")
@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
def test_talkers_train_on_the_states_of_their_own_thinker(data: SpokenDialogueDataModule) -> None:
    llm = make_llm("ntp")
    before = llm.talkers["ntp"].anchors.projection.weight.detach().clone()
    fit(llm, data)
    assert (llm.talkers["ntp"].anchors.projection.weight.detach() != before).any()


def test_states_of_another_thinker_or_adapter_are_refused_before_training(data: SpokenDialogueDataModule) -> None:
    llm = make_llm("ntp")
    add_adapter(llm.thinker.language_model.model, "voice", LoraSettings(rank=2))
    before = llm.talkers["ntp"].anchors.projection.weight.detach().clone()
    with pytest.raises(UserError, match="text states of train were written by another thinker, or with another ad"):
        fit(llm, data)
    assert (llm.talkers["ntp"].anchors.projection.weight.detach() == before).all()
    with pytest.raises(UserError, match="run the stage text_states with this thinker and set text_states_root"):
        other = make_llm("ntp")
        other.thinker.adaptor.up.weight.data += 0.01
        fit(other, data)
