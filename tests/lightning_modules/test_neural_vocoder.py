"""The neural vocoder learns speech from tokens, on crops that fit their originals; its codec stays as it was."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.acoustics.vocos import Vocos
from lightning_modules.errors import UserError
from lightning_modules.neural_vocoder import NeuralVocoder
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.training.checkpoints import LEFT_OUT

LENGTHS = torch.tensor([15_800, 9_100])


class MelAsTold(SpeechCodec):
    """A codec whose decoder gives what a test wants, so that its own training does not matter."""

    told: Tensor

    def decode_mel(self, tokens: Tensor, token_lengths: Tensor | None = None) -> Tensor:
        return self.told[:, :, : 4 * tokens.shape[1]]


def bursts() -> Tensor:
    """Make tones of changing pitch in bursts of an eighth of a second: ``(2, 15800)``, zero beyond the lengths."""
    time = torch.arange(15_800) / 16_000
    pitch = torch.tensor([[130.0], [190.0]]) + 20 * torch.sin(4 * time)
    phase = 2 * torch.pi * torch.cumsum(pitch / 16_000, 1)
    sound = torch.stack([torch.sin(k * phase) / k for k in range(1, 9)]).sum(0) * (time * 8 % 2 < 1)
    return 0.1 * sound * (torch.arange(15_800) < LENGTHS[:, None])


def make_batch() -> SpokenBatch:
    units = torch.randint(0, 1000, (2, 25), generator=torch.Generator().manual_seed(0))
    return SpokenBatch(
        ["a", "b"], ["x", "y"], units=units, unit_lengths=torch.tensor([25, 15]), reply=bursts(), reply_lengths=LENGTHS
    )


def make_module(codec_class: type[SpeechCodec] = MelAsTold, **arguments: Any) -> NeuralVocoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = codec_class(channels=(8, 8, 8))
        if isinstance(codec, MelAsTold):
            codec.told = codec.log_mel(torch.nn.functional.pad(bursts(), (0, 200)))
        network = Vocos(channels=32, num_blocks=2)
    settings = {"crop_s": 0.32, "window_samples": (256, 512), "warmup_steps": 3, "learning_rate": 5e-3}
    return NeuralVocoder(network, codec, **{**settings, **arguments})


def make_trainer(folder: Path, **arguments: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")  # the codec, which is frozen
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_learns_and_its_codec_does_not(tmp_path: Path, precision: str) -> None:
    module, batch = make_module(), make_batch()
    codec = copy.deepcopy(module.codec.state_dict())
    loader = DataLoader([batch], batch_size=None)
    before = make_trainer(tmp_path).validate(make_module(), loader, verbose=False)[0]["val/mel_l1"]
    trainer = make_trainer(tmp_path, max_steps=40, precision=precision, gradient_clip_val=1.0)
    trainer.fit(module, DataLoader([batch] * 40, batch_size=None), loader)
    after = float(trainer.callback_metrics["val/mel_l1"])
    assert after < 0.5 * before, (before, after)
    assert all(torch.equal(value, codec[key]) for key, value in module.codec.state_dict().items())


def test_validation_averages_over_the_frames_of_the_rows_alone(tmp_path: Path) -> None:
    module, batch = make_module(), make_batch()
    found = make_trainer(tmp_path).validate(module, DataLoader([batch], batch_size=None), verbose=False)
    log_mel, lengths = module.decoded_mel(batch)
    errors = []
    for row, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            sound = module.network(log_mel[row : row + 1, :, :length])
        original = torch.nn.functional.pad(batch.reply[row], (0, 200))[None, : 160 * length]  # type: ignore[index]
        errors.append((module.codec.log_mel(sound) - module.codec.log_mel(original)).abs().mean(1).flatten())
    # The sound behind a row's end, of which its last two frames hear a little, is cut off here.
    assert found[0]["val/mel_l1"] == pytest.approx(float(torch.cat(errors).mean()), rel=0.03)


def test_crops_of_mel_and_sound_belong_together_and_are_functions_of_seed_and_step() -> None:
    module = make_module(crop_s=0.4)
    inputs, sound = module._crops(make_batch())
    assert inputs.shape == (2, 80, 40 + 4) and sound.shape == (2, 6_400)
    heard = module.codec.log_mel(sound)[:, :, 2:-2]  # those that see nothing beyond the crop
    torch.testing.assert_close(heard, inputs[:, :, 2:38], atol=1e-3, rtol=0)
    assert torch.equal(sound, make_module(crop_s=0.4)._crops(make_batch())[1])
    assert not torch.equal(sound, make_module(crop_s=0.4, seed=1)._crops(make_batch())[1])


def test_frames_beyond_a_row_are_silent() -> None:
    log_mel, lengths = make_module(SpeechCodec).decoded_mel(make_batch())
    assert lengths.tolist() == [100, 60]
    assert (log_mel[1, :, 60:] == Vocos.silence).all() and (log_mel[1, :, :60] != Vocos.silence).any()


def test_a_checkpoint_holds_the_network_alone() -> None:
    module = make_module()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"network"}
    assert all(key.startswith("codec.") for key in checkpoint[LEFT_OUT])
    module.on_load_checkpoint(checkpoint)
    del checkpoint["state_dict"]["network.head.weight"]
    with pytest.raises(UserError, match=r"1 weights are missing \(\['network.head.weight'\]"):
        module.on_load_checkpoint(checkpoint)


def test_wrong_settings_and_data_are_refused_with_the_fix() -> None:
    with pytest.raises(UserError, match="crop_s is 0.3201; give a multiple of 0.01 s"):
        make_module(crop_s=0.3201)
    with pytest.raises(UserError, match="crop_s is 0.02; give a finite number of at least 0.032"):
        make_module(crop_s=0.02)
    with pytest.raises(UserError, match="mel_weight is -1"):
        make_module(mel_weight=-1)
    module = make_module()
    module.check_data({"train": ["reply", "units"], "test": ["query"]})
    with pytest.raises(UserError, match=r"validation batches lack \['units'\]"):
        module.check_data({"train": ["reply", "units"], "validation": ["reply"]})
    with pytest.raises(UserError, match="add 'units'"):
        module.training_step(SpokenBatch(["a"], ["x"]), 0)
    batch = make_batch()
    batch.reply = None
    with pytest.raises(UserError, match="add 'reply'"):
        module.training_step(batch, 0)
