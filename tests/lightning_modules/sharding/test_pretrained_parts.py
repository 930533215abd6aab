"""LoRA on pretrained parts in bfloat16, split over two processes: trained, validated, tested, saved, loaded by one."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from callbacks.adapter_folders import AdapterFolders
from callbacks.runtime.last_checkpoint import LastCheckpoint
from lightning_modules.adapters.lora import LoraSettings
from lightning_modules.errors import UserError
from lightning_modules.sharding import sharded_files
from lightning_modules.sharding.strategy import FullyShardedStrategy
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.thinker.objective import ThinkerObjective
from tests.lightning_modules.pretrained import load_pretrained_thinker, save_pretrained_parts
from tests.lightning_modules.talker.conftest import build_talker
from tests.lightning_modules.test_speech_llm import ToneVocoder
from tests.lightning_modules.test_two_ranks import half_of, uneven_batch
from tests.two_ranks import make_trainer, on_two_ranks


def make_stage(folder: Path, seed: int = 0, lora: dict[str, LoraSettings] | None = None) -> SpeechLLM:
    """Train LoRA matrices of the thinker and of a talker, whose frozen weights are drawn by a seed."""
    torch.manual_seed(seed)
    thinker = load_pretrained_thinker(folder, lora_rank=None, gradient_checkpointing=True)
    talker = build_talker("ntp", thinker.hidden_size, thinker.embedding_size)
    return SpeechLLM(
        thinker,
        {"ntp": talker},
        ThinkerObjective(),
        lora=lora or {"thinker.language_model": LoraSettings(2), "talkers.ntp": LoraSettings(2)},
        vocoder=ToneVocoder(),
        decodings={"ntp": Decoding("ntp")},
        max_text_tokens=6,
        max_speech_s=2.0,
        learning_rate=1e-2,
        gradient_clip_norm=0.5,
        warmup_steps=0,
    )


class Record(L.Callback):
    """Keeps what the optimizer knows behind each step, and the spoken replies of a test."""

    def __init__(self) -> None:
        self.num_samples: list[int] = []
        self.known: list[str] = []
        self.with_gradient: list[str] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        (optimizer,) = trainer.optimizers
        known = {id(one) for group in optimizer.param_groups for one in group["params"]}
        assert known == {id(one) for one in optimizer.state}
        self.known = [name for name, one in pl_module.named_parameters() if id(one) in known]
        self.with_gradient = [name for name, one in pl_module.named_parameters() if one.grad is not None]

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.num_samples += [len(reply.waveform) for row in outputs for reply in row.values()]


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def train_test_and_save(rank: int, folder: str) -> dict[str, Any]:
    """Validate and test on more batches on the first rank than on the second one."""
    llm, root, record = make_stage(Path(folder), rank), Path(folder) / "run", Record()
    before = {name: one.detach().clone() for name, one in llm.named_parameters()}
    trainer = make_trainer(
        2,
        max_steps=3,
        precision="bf16-mixed",
        default_root_dir=root,
        callbacks=[AdapterFolders(), LastCheckpoint(root / "last.ckpt"), record],
        enable_checkpointing=True,
        strategy=FullyShardedStrategy(),
    )
    batches = [half_of(uneven_batch(seed), rank) for seed in range(3)]
    fewer = DataLoader(batches[: 3 - rank], batch_size=None)
    trainer.fit(llm, DataLoader(batches, batch_size=None), fewer)
    trainer.test(llm, fewer, verbose=False)
    parameters = dict(llm.named_parameters())
    refusals = []
    for settings in (LoraSettings(2, targets=("q_proj",)), LoraSettings(3)):
        lora = {"thinker.language_model": settings, "talkers.ntp": LoraSettings(2)}
        other = make_stage(Path(folder), lora=lora)
        trainer = make_trainer(2, max_steps=4, precision="bf16-mixed", strategy=FullyShardedStrategy())
        try:
            trainer.fit(other, DataLoader(batches, batch_size=None), ckpt_path=root / "last.ckpt", weights_only=True)
        except UserError as error:
            refusals.append(list(str(error).encode()))
    return {
        "refusals": refusals,
        "before": before,
        "weights": {name: whole(one) for name, one in parameters.items()},
        "known": record.known,
        "with gradient": record.with_gradient,
        "split": [name for name, one in parameters.items() if isinstance(one, DTensor)],
        "replies": record.num_samples,
    }


@pytest.mark.slow
def test_lora_on_split_parts(tmp_path: Path) -> None:
    save_pretrained_parts(tmp_path)
    first, second = on_two_ranks(train_test_and_save, str(tmp_path))
    weights, before = first["weights"], first["before"]
    assert all(torch.equal(value, second["weights"][name]) for name, value in weights.items())
    matrices = [name for name in weights if ".lora_" in name]
    changed = [name for name, value in weights.items() if not torch.equal(value, before[name])]
    assert matrices == changed == first["known"] == first["with gradient"]
    assert first["split"] == [name for name in weights if name.startswith("thinker.")]
    assert {weights[name].dtype for name in matrices} == {torch.float32}
    frozen = {
        value.dtype for name, value in weights.items() if "thinker.language_model" in name and name not in matrices
    }
    assert frozen == {torch.bfloat16}
    assert [len(first["replies"]), len(second["replies"])] == [6, 4] and min(first["replies"]) > 0
    with_fewer, of_another_size = (bytes(one).decode() for one in first["refusals"])
    assert "24 are unexpected (['thinker.language_model" in with_fewer and "lora_A.trained" in with_fewer
    assert "does not fit this module: state_dict.thinker.language_model" in of_another_size
    run = tmp_path / "run"
    assert sharded_files.is_sharded(run / "last.ckpt")
    assert {name.split(".")[0] for name in sharded_files.sizes(run / "last.ckpt")} == {"state_dict", "optimizer"}
    checkpoint = sharded_files.read_whole(run / "last.ckpt")
    assert sorted(set(checkpoint["state_dict"])) == sorted(matrices)
    alone = make_stage(tmp_path)
    alone.on_load_checkpoint(checkpoint)
    alone.load_state_dict(checkpoint["state_dict"], strict=False)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=0, atol=0)
    for part in ("thinker.language_model", "talkers.ntp"):
        saved = load_file(run / "adapters" / "last" / part / "adapter_model.safetensors")
        own = [weights[name] for name in matrices if name.startswith(part)]
        assert sorted(float(one.sum()) for one in saved.values()) == sorted(float(one.sum()) for one in own)
