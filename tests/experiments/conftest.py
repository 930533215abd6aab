"""Runs of tiny systems, made once for all tests that read them; no test may change them."""

from pathlib import Path

import pytest

from tests.experiments.tiny_runs import make_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the runs."""
    return make_runs(tmp_path_factory.mktemp("runs"))
