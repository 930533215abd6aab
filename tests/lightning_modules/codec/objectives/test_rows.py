"""Rows of a batch that an objective looks at."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.codec.objectives.rows import draw_rows


@given(num_rows=st.integers(1, 30), max_rows=st.none() | st.integers(1, 40), seed=st.integers(0, 99))
def test_different_rows_as_many_as_allowed(num_rows: int, max_rows: int | None, seed: int) -> None:
    rows = draw_rows(num_rows, max_rows, torch.Generator().manual_seed(seed))
    assert len(rows) == min(num_rows, max_rows or num_rows)
    assert rows == sorted(set(rows)) and set(rows) <= set(range(num_rows))


def test_every_row_has_its_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    assert {row for _ in range(40) for row in draw_rows(9, 2, generator)} == set(range(9))
