"""The cost of a chunk grid: figures that can be worked out by hand, and distances that are 0 where nothing differs."""

import json
from pathlib import Path

import pytest
import torch

from experiments.jobs.vocoders.vocoder_grid_benchmark import ChunkGrid, VocoderGridBenchmark, log_mel_distance
from lightning_modules.codec.xcodec2 import Xcodec2
from lightning_modules.errors import UserError
from tests.lightning_modules.codec.tiny import make_model


def test_a_window_around_all_is_at_no_distance_and_a_short_one_is(tmp_path: Path) -> None:
    grids = {"all": ChunkGrid(200), "short": ChunkGrid(5, 10, 5, 2)}
    codec = Xcodec2(make_model("xcodec2"))
    result = VocoderGridBenchmark(codec, grids, duration_s=2.0, num_rounds=1).run(tmp_path)
    assert result["all/log_mel_db"] == 0 and result["all/snr_db"] > 150
    assert result["short/log_mel_db"] > 0 and result["short/snr_db"] < 100
    assert (result["short/wait_s"], result["short/compute_factor"]) == (10 / 50, 20 / 5)
    assert all(result[f"short/{name}"] > 0 for name in ("first_chunk_s", "rtf", "rtf_at_once"))
    assert json.loads((tmp_path / "measured.json").read_text())["short"]["wait_s"] == 0.2
    assert "| short (5 + 10 + 5, 2) | 0.20 |" in (tmp_path / "results.md").read_text()


def test_half_the_amplitude_is_six_decibels() -> None:
    noise = torch.randn(32_000, generator=torch.Generator().manual_seed(0))
    assert log_mel_distance(0.5 * noise, noise, 16_000) == pytest.approx(6.02, abs=0.01)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="duration_s is 0"):
        VocoderGridBenchmark(Xcodec2(make_model("xcodec2")), {}, duration_s=0)
    with pytest.raises(UserError, match="overlap_tokens is 9"):
        VocoderGridBenchmark(Xcodec2(make_model("xcodec2")), {"a": ChunkGrid(overlap_tokens=9)})
