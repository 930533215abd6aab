"""The job that measures dependence: all batches together, block by block, in a table."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from callbacks.block_dependence import score_batch
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from experiments.jobs.block_dependence import BlockDependenceJob
from lightning_modules.errors import UserError
from tests.lightning_modules.test_speech_llm import make_batch, make_llm


def test_batches_add_up_to_a_table(tmp_path: Path) -> None:
    llm, batches = make_llm("set_block", "mdm").eval(), [make_batch(seed) for seed in range(3)]
    # What a data module gives, without a corpus on the disk.
    data = cast(SpokenDialogueDataModule, SimpleNamespace(setup=lambda stage: None, val_dataloader=lambda: batches))
    metrics = BlockDependenceJob(llm, data, ["set_block", "mdm"], max_batches=2).run(tmp_path)
    first, second = (score_batch(llm, ["mdm"], batch)["mdm"] for batch in batches[:2])
    both = first + second
    assert metrics["mdm/val/block_dependence"] == pytest.approx(both.dependence())
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0] == "| talker | block | tokens | 1 steps | 2 steps | 4 steps | 8 steps | one-step minus sequential |"
    assert sum(line.startswith("| mdm |") for line in lines) == 1 + len(both.counts)
    assert f"| mdm | all | {int(both.counts.sum())} | {both.per_token(1):.3f} |" in "\n".join(lines)
    assert lines[-1].startswith("nats per token over gold blocks of")


def test_without_talkers_or_replies_it_says_so(tmp_path: Path) -> None:
    llm = make_llm("mdm").eval()
    none = cast(SpokenDialogueDataModule, SimpleNamespace(setup=lambda stage: None, val_dataloader=lambda: []))
    with pytest.raises(UserError, match="talkers is empty; name at least one"):
        BlockDependenceJob(llm, none, [])
    with pytest.raises(UserError, match="no validation reply to score"):
        BlockDependenceJob(llm, none, ["mdm"]).run(tmp_path)
