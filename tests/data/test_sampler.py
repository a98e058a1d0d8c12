"""Tests the order of images: it needs no pixels, so records are bare."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from kerasdet.data import ImageSampler
from kerasdet.data.sampler import last_epoch, repeat_factors


def records_of(*classes, wide=None):
    wide = [True] * len(classes) if wide is None else wide
    return [
        SimpleNamespace(class_ids=np.array(ids, np.int32), width=20 if is_wide else 10, height=15)
        for ids, is_wide in zip(classes, wide, strict=True)
    ]


def order(sampler, records, batch_size, count, seed=0, start_step=0):
    pairs = list(sampler.order(records, batch_size, seed, start_step).take(count).as_numpy_iterator())
    positions, indices = np.array(pairs).T
    np.testing.assert_array_equal(positions, start_step * batch_size + np.arange(count))
    return indices


def test_repeat_factors_equal_lvis():
    """Class 0 is in 4 of 5 images, class 1 in 2, class 2 in 1; the threshold is 0.5."""
    ids = [np.array(v, np.int32) for v in ([0, 0, 0], [0, 1], [1, 0], [0, 2, 2], [])]
    factors = repeat_factors(ids, 0.5)
    rarest = [0.8, 0.4, 0.4, 0.2, math.inf]
    np.testing.assert_allclose(factors, [max(1, math.sqrt(0.5 / f)) for f in rarest])
    np.testing.assert_array_equal(repeat_factors([np.zeros(0, np.int32)] * 2, 0.5), [1, 1])


def test_repeats_follow_the_factors_in_every_epoch_and_over_all():
    records = records_of([0], [0], [0], [0, 1], [0], [0], [0], [2, 1])
    factors = repeat_factors([record.class_ids for record in records], 0.6)
    assert 1.5 < factors[3] < 1.6 and 2.1 < factors[7] < 2.2
    indices = order(ImageSampler(repeat_threshold=0.6), records, 2, 400)
    counts = Counter(indices.tolist())
    epochs = counts[0]
    assert abs(len(indices) - epochs * factors.sum()) < len(records) + factors.sum()
    for i, factor in enumerate(factors):
        assert abs(counts[i] - factor * epochs) <= 1 + factor
    # The images seen once an epoch mark where epochs begin and end.
    seen = np.flatnonzero(indices == 7)
    once = [np.searchsorted(np.flatnonzero(indices == i), seen) for i in (0, 1, 2, 4, 5, 6)]
    assert (np.ptp(once, 0) <= 1).all()


def test_order_without_options_is_a_new_permutation_each_epoch():
    records = records_of(*[[0]] * 9)
    epochs = order(ImageSampler(), records, 4, 9 * 12).reshape(12, 9)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(9), (12, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 12
    other = order(ImageSampler(), records, 4, 9 * 12, seed=1).reshape(12, 9)
    assert (epochs != other).any()


WIDE = [True, False, True, True, False, True, True, True, False, True, True]
SAMPLERS = {
    "plain": ImageSampler(),
    "repeated": ImageSampler(repeat_threshold=0.7),
    "grouped": ImageSampler(group_by_aspect_ratio=True),
    "both": ImageSampler(0.7, True),
}


@pytest.fixture(scope="module")
def records():
    return records_of(*([0, 1] if i % 4 == 0 else [0] for i in range(11)), wide=WIDE)


@pytest.mark.parametrize("name", SAMPLERS)
def test_order_resumes_at_any_step(records, name):
    whole = order(SAMPLERS[name], records, 4, 400, seed=3)
    for step in (1, 2, 3, 7, 11, 40, 83):
        resumed = order(SAMPLERS[name], records, 4, 40, seed=3, start_step=step)
        np.testing.assert_array_equal(resumed, whole[4 * step : 4 * step + 40])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5])
def test_groups_fill_batches_and_lose_no_image(records, batch_size):
    indices = order(ImageSampler(group_by_aspect_ratio=True), records, batch_size, 40 * 11 * batch_size // 2)
    batches = np.array(WIDE)[indices].reshape(-1, batch_size)
    assert (batches == batches[:, :1]).all()
    assert len({tuple(batch) for batch in batches}) == 2
    for group in (True, False):
        members = np.flatnonzero(np.array(WIDE) == group)
        stream = indices[np.array(WIDE)[indices] == group]
        full = len(stream) // len(members)
        epochs = stream[: full * len(members)].reshape(full, -1)
        np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(members, (full, 1)))
    counts = np.bincount(indices, minlength=11)
    assert np.ptp(counts) <= 1 + math.ceil(2 * batch_size / 3)  # groups run on side by side


def test_group_of_one_kind_or_smaller_than_a_batch():
    alone = order(ImageSampler(group_by_aspect_ratio=True), records_of([0], [0], [0]), 2, 6)
    assert sorted(alone[:3]) == sorted(alone[3:]) == [0, 1, 2]
    records = records_of(*[[0]] * 5, wide=[True, True, False, True, True])
    batches = order(ImageSampler(group_by_aspect_ratio=True), records, 3, 300).reshape(-1, 3)
    narrow = (batches == 2).all(1)
    assert ((batches == 2).any(1) == narrow).all()
    assert abs(narrow.mean() - 0.2) < 0.02


def test_last_epoch_is_found_by_bisection():
    starts = [0, 3, 3, 5, 9, 12, 20, 31, 50]
    assert [last_epoch(lambda e: starts[min(e, 8)] + max(e - 8, 0), p) for p in (0, 2, 3, 4, 8, 12, 51)] == [
        *(0, 0, 2, 2, 3, 5, 9)
    ]


@pytest.mark.parametrize("threshold", [0, 1.5, "a"])
def test_invalid_threshold_raises(threshold):
    with pytest.raises(ValueError, match="repeat_threshold"):
        ImageSampler(threshold)
