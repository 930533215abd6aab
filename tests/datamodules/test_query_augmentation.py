"""Augmented queries are a function of seed, epoch and example, and leave the global generators as they were."""

import random

import numpy as np
import pytest
import torch
from audiomentations import AddGaussianSNR, RoomSimulator, TimeStretch

from datamodules.query_augmentation import QueryAugmentation

QUERY = torch.sin(torch.arange(8000) / 20)


def augmentation(seed: int = 0) -> QueryAugmentation:
    stretch = TimeStretch(min_rate=0.8, max_rate=1.25, leave_length_unchanged=False, p=1.0)
    return QueryAugmentation([AddGaussianSNR(min_snr_db=5.0, max_snr_db=20.0, p=1.0), stretch], seed)


def test_the_same_example_comes_out_the_same_and_others_do_not() -> None:
    first = augmentation()(QUERY, 0, 3)
    assert first.dtype == torch.float32 and torch.isfinite(first).all()
    assert torch.equal(first, augmentation()(QUERY, 0, 3))
    others = [augmentation()(QUERY, 1, 3), augmentation()(QUERY, 0, 4), augmentation(seed=1)(QUERY, 0, 3)]
    assert all(len(other) != len(first) or not torch.equal(other, first) for other in others)


def test_it_changes_length_and_adds_noise() -> None:
    lengths = {len(augmentation()(QUERY, epoch, 0)) for epoch in range(5)}
    assert len(lengths) > 1 and all(8000 / 1.3 < length < 8000 / 0.75 for length in lengths)
    noisy = QueryAugmentation([AddGaussianSNR(min_snr_db=10.0, max_snr_db=10.0, p=1.0)])(QUERY, 0, 0)
    snr_db = 20 * float((QUERY.square().mean().sqrt() / (noisy - QUERY).square().mean().sqrt()).log10())
    assert snr_db == pytest.approx(10.0, abs=0.5)


def test_global_generators_are_left_as_they_were() -> None:
    def draw() -> tuple[float, float]:
        return random.random(), float(np.random.rand())

    random.seed(1)
    np.random.seed(1)
    expected = draw()
    random.seed(1)
    np.random.seed(1)
    augmentation()(QUERY, 0, 0)
    assert draw() == expected


def test_the_query_that_was_given_stays_as_it_was() -> None:
    before = QUERY.clone()
    augmentation()(QUERY, 0, 0)
    assert torch.equal(QUERY, before)


def test_rooms_without_ray_tracing_are_repeatable_and_with_it_refused() -> None:
    rooms = [QueryAugmentation([RoomSimulator(use_ray_tracing=False, p=1.0)])(QUERY, 0, 1) for _ in range(2)]
    assert torch.equal(*rooms) and not torch.equal(rooms[0][:8000], QUERY[: len(rooms[0])])
    with pytest.raises(ValueError, match="use_ray_tracing"):
        QueryAugmentation([RoomSimulator(p=1.0)])


def test_no_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="name at least one"):
        QueryAugmentation([])
