"""The vocoder network: stepped equals whole, it sees the stated look-ahead and no more, and starts near its input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.acoustics.log_mel import LOG_STD, LogMel
from lightning_modules.acoustics.vocos import Vocos, envelope_matrix
from lightning_modules.errors import UserError

HOP = 160


def make_network(**arguments: int) -> Vocos:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Vocos(**{"channels": 16, "num_blocks": 2, **arguments}).eval()


NETWORKS = [make_network(), make_network(lookahead_frames=7), make_network(window_hops=3, lookahead_frames=2)]


def random_mel(frames: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 80, frames, generator=torch.Generator().manual_seed(frames))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(network=st.sampled_from(NETWORKS), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_steps_of_any_sizes_give_the_samples_of_the_whole(network: Vocos, sizes: list[int]) -> None:
    log_mel = random_mel(sum(sizes))
    silence = torch.full((2, 80, network.lookahead_frames), network.silence)
    state, pieces = network.begin(log_mel), []
    with torch.no_grad():
        for part in [*log_mel.split(sizes, dim=2), silence]:
            samples, state = network.step(part, state)
            assert samples.shape == (2, HOP * part.shape[2])
            pieces.append(samples)
        whole = network(log_mel)
    assert whole.shape == (2, HOP * sum(sizes))
    torch.testing.assert_close(torch.cat(pieces, 1)[:, HOP * network.lookahead_frames :], whole, atol=1e-5, rtol=1e-5)
    begin = network.begin(log_mel)
    assert [one.shape for one in state.contexts] == [one.shape for one in begin.contexts]
    assert state.overlap.shape == begin.overlap.shape


@pytest.mark.parametrize("network", NETWORKS, ids=["default", "lookahead 7", "window 3"])
def test_a_hop_depends_on_the_stated_look_ahead_and_no_more(network: Vocos) -> None:
    log_mel, place = random_mel(60, rows=1).requires_grad_(), 30
    network(log_mel)[:, HOP * place : HOP * (place + 1)].square().sum().backward()
    assert log_mel.grad is not None
    (heard,) = log_mel.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    assert int(heard.max()) == place + network.lookahead_frames
    assert network.lookahead_s == pytest.approx(0.01 * network.lookahead_frames)


@pytest.mark.parametrize("window_hops", [2, 3, 4])
def test_overlapping_windows_add_up_to_one(window_hops: int) -> None:
    network = make_network(window_hops=window_hops)
    total = network.window.view(window_hops, HOP).sum(0)
    torch.testing.assert_close(total, torch.ones(HOP))


def test_the_envelope_is_the_mel_at_the_frequency_of_each_bin() -> None:
    matrix = envelope_matrix(321)
    torch.testing.assert_close(matrix.sum(1), torch.ones(321))
    assert (matrix >= 0).all()
    filters = LogMel().filters  # bins of 25 Hz, as here
    band = filters[40:41] / filters[40].max()
    top = int(band.argmax())
    assert matrix[top, 40] > 0.9 and matrix[:, 40].argmax() == top


def test_an_untrained_network_has_the_level_of_its_input() -> None:
    log_mel = LogMel()
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([[0.3], [0.01]])
    wanted = log_mel(levels * torch.randn(2, 16_000, generator=generator))
    with torch.no_grad():
        found = log_mel(NETWORKS[0](wanted))
    error = LOG_STD * (found - wanted)[:, :, 5:-5].mean((1, 2))
    assert error.abs().max() < 1.5, "13 dB, over a range of 30 dB"
    assert abs(float(error[0] - error[1])) < 0.3


def test_autocast_keeps_the_synthesis_in_float32() -> None:
    log_mel = random_mel(20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = NETWORKS[0](log_mel)
    exact = NETWORKS[0](log_mel)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"window_hops": 1}, "window_hops is 1"),
        ({"lookahead_frames": 2}, "lookahead_frames is 2; give a number from 3 to 7"),
        ({"lookahead_frames": 8}, "lookahead_frames is 8; give a number from 3 to 7"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Vocos(**arguments)
