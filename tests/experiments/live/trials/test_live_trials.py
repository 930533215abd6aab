"""The trials of the live server, at a small size: it keeps working, and nothing is left behind."""

import copy

import pytest

from experiments.live.system import Limits
from experiments.live.trials.live_trials import LiveTrials, failures_of
from lightning_modules.errors import UserError
from tests.experiments.live.tiny import make_system


@pytest.mark.slow
def test_the_server_keeps_working_whatever_clients_do() -> None:
    trials = LiveTrials("runs/tiny", num_clients=10, num_connections=25, num_messages=200, num_queries=3)  # type: ignore[arg-type]
    measured = trials.measure(make_system(Limits(patience_s=1.0), max_speech_s=0.7))
    assert failures_of(measured, num_clients=10, num_messages=200) == []
    first = measured["first chunk"]
    assert first["num_queries"] == 3 and first["difference_low_ms"] <= first["difference_ms"]
    assert measured["crowd"]["largest_place"] >= 3 and measured["crowd"]["most_displaced"] <= 3
    assert 50 < measured["random messages"]["errors_told"] and measured["random messages"]["connections"] < 20
    assert measured["silent reader"]["seconds"] < 20
    for trial, name, value, told in (
        ("crowd", "answered", 9.0, "9 of 10 clients at once were answered"),
        ("disconnects", "tasks_after", 1e6, "tasks grew from"),
        ("disconnects", "rss_last_mb", 1e6, "memory grew by"),
        ("silent reader", "is_given_up", 0.0, "a client that never reads was not given up"),
    ):
        worse = copy.deepcopy(measured)
        worse[trial][name] = value
        (failure,) = failures_of(worse, num_clients=10, num_messages=200)
        assert told in failure


@pytest.mark.parametrize("num_clients", [20, 100])
def test_no_client_of_a_trial_is_sent_away(num_clients: int) -> None:
    limits = LiveTrials("runs/tiny", num_clients=num_clients, patience_s=3.0).limits  # type: ignore[arg-type]
    assert limits.max_waiting >= num_clients and limits.max_clients >= num_clients and limits.patience_s == 3.0


def test_what_cannot_be_tried_is_told() -> None:
    with pytest.raises(UserError, match="name two to compare"):
        LiveTrials("runs/tiny", decodings=["ntp"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_messages is 0"):
        LiveTrials("runs/tiny", num_messages=0)  # type: ignore[arg-type]
