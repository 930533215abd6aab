"""The adaptor stacks five frames, and padding does not leak into a row."""

from pathlib import Path

import pytest
import torch

from lightning_modules.errors import UserError
from lightning_modules.thinker.adaptor import Adaptor
from tests.lightning_modules.talker.vocalnet.tiny import (
    AUDIO_WIDTH,
    draw_weights,
    make_config,
    write_checkpoint,
    write_files,
)


def test_lengths_are_a_fifth_rounded_up() -> None:
    adaptor = Adaptor(input_size=4, output_size=6, hidden_size=8)
    embeddings, lengths = adaptor(torch.randn(4, 11, 4), torch.tensor([1, 5, 6, 11]))
    assert embeddings.shape == (4, 3, 6)
    assert lengths.tolist() == [1, 1, 2, 3]


def test_a_batched_row_equals_the_single_row() -> None:
    adaptor = Adaptor(input_size=4, output_size=6, hidden_size=8)
    frames = torch.randn(2, 13, 4)
    embeddings, _ = adaptor(frames, torch.tensor([13, 7]))
    single, lengths = adaptor(frames[1:, :7], torch.tensor([7]))
    torch.testing.assert_close(embeddings[1, : lengths[0]], single[0])


def test_an_embedding_hears_its_own_five_frames_only() -> None:
    adaptor = Adaptor(input_size=4, output_size=6, hidden_size=8)
    frames = torch.randn(1, 15, 4)
    changed = frames.clone()
    changed[0, 5:10] += 1.0
    lengths = torch.tensor([15])
    differs = (adaptor(frames, lengths)[0] != adaptor(changed, lengths)[0]).any(dim=-1)
    assert differs.tolist() == [[False, True, False]]


@pytest.mark.parametrize("form", ["single", "sharded", "bin"])
def test_the_adaptor_of_vocalnet_gives_what_theirs_gives(tmp_path: Path, form: str) -> None:
    weights = write_checkpoint(tmp_path, form=form)
    adaptor = Adaptor.from_vocalnet(tmp_path)
    frames = torch.randn(2, 20, AUDIO_WIDTH, generator=torch.Generator().manual_seed(0))
    up, down = ([weights[f"model.speech_projector.linear{one}.{kind}"] for kind in ("weight", "bias")] for one in "12")
    stacked = frames.reshape(2, 4, 5 * AUDIO_WIDTH)
    expected = torch.nn.functional.linear(torch.nn.functional.linear(stacked, *up).clamp(min=0), *down)
    embeddings, lengths = adaptor(frames, torch.tensor([20, 20]))
    torch.testing.assert_close(embeddings, expected)
    assert lengths.tolist() == [4, 4]


def test_an_adaptor_of_vocalnet_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    config = make_config()
    weights = draw_weights(config, 0)
    del weights["model.speech_projector.linear2.bias"]
    write_files(tmp_path, config, weights)
    with torch.device("meta"):
        assert Adaptor.from_vocalnet(tmp_path).up.weight.is_meta
    with pytest.raises(UserError, match=r"1 weights are missing \(\['model.speech_projector.linear2.bias'\]\)"):
        Adaptor.from_vocalnet(tmp_path)
    del config["speech_encoder_ds_rate"]
    write_files(tmp_path, config, weights)
    with pytest.raises(UserError, match=r"has no \['speech_encoder_ds_rate'\]"):
        Adaptor.from_vocalnet(tmp_path)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(UserError, match="activation 'swish' is unknown; choose one of gelu, relu"):
        Adaptor(4, 6, activation="swish")
