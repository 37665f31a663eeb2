import itertools

import numpy as np
import pytest

from vfm.data import sampler
from vfm.data.sampler import EpochSampler, compute_repeat_factors


def take(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_is_a_function_of_seed_and_epoch():
    first = take(EpochSampler(50, shuffle=True, seed=3), epoch=4)
    assert first == take(EpochSampler(50, shuffle=True, seed=3), epoch=4)
    assert {epoch for epoch, _ in first} == {4}
    order = [index for _, index in first]
    assert sorted(order) == list(range(50))
    assert order != [i for _, i in take(EpochSampler(50, shuffle=True, seed=3), epoch=5)]
    assert order != [i for _, i in take(EpochSampler(50, shuffle=True, seed=2), epoch=4)]


def test_order_stays_what_it_was():
    # A checkpoint of an older version resumes in the middle of this order.
    assert [i for _, i in EpochSampler(10, shuffle=True, seed=0)] == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]


def test_without_shuffle_the_order_is_that_of_the_records():
    assert take(EpochSampler(4, shuffle=False), epoch=2) == [(2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.mark.parametrize("num_images", [16, 17, 1])
def test_two_ranks_see_what_one_sees_with_a_batch_of_double_size(num_images):
    one = take(EpochSampler(num_images, shuffle=True, seed=1), epoch=3)
    ranks = [
        take(EpochSampler(num_images, shuffle=True, seed=1, rank=r, num_replicas=2), epoch=3)
        for r in range(2)
    ]
    assert len(ranks[0]) == len(ranks[1]) == (num_images + 1) // 2
    size = 4
    for step in range(0, len(ranks[0]), size):
        union = {*ranks[0][step : step + size], *ranks[1][step : step + size]}
        alone = set(one[2 * step : 2 * step + 2 * size])
        # An odd number wraps around: the first image comes once more.
        assert alone <= union <= alone | {one[0]}


def test_more_ranks_than_images_wrap_around():
    for rank in range(5):
        sampler = EpochSampler(2, shuffle=False, rank=rank, num_replicas=5)
        assert list(sampler) == [(0, rank % 2)]
        assert len(sampler) == 1


def test_start_leaves_out_samples_once():
    sampler = EpochSampler(10, shuffle=True, seed=7)
    whole = list(sampler)
    sampler.start = 6
    assert list(sampler) == whole[6:]
    assert list(sampler) == whole
    assert len(sampler) == 10


def test_epoch_set_between_iter_and_next_counts():
    sampler = EpochSampler(10, shuffle=True)
    iterator = iter(sampler)
    sampler.set_epoch(9)
    assert next(iterator)[0] == 9


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least 1 image, not 0"):
        EpochSampler(0, shuffle=True)


def test_parts_of_photos_come_together_in_a_new_order_each_epoch(monkeypatch):
    monkeypatch.setattr(sampler, "_AT_ONCE", 100)
    of_sample = np.repeat(np.arange(6), 5)
    photos = sampler.Photos(of_sample, np.array([100, 100, 40, 40, 300, 0]))
    orders = []
    for epoch in (0, 1, 0):
        whole = EpochSampler(30, shuffle=True, seed=4, photos=photos)
        whole.set_epoch(epoch)
        orders.append([index for _, index in whole])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(30))
    for number in (0, 1, 4):  # a large one is shuffled with few others
        assert np.ptp(np.flatnonzero(of_sample[orders[0]] == number)) < 15
    parts = [
        EpochSampler(30, shuffle=True, seed=4, photos=photos, rank=r, num_replicas=2)
        for r in (0, 1)
    ]
    assert [i for pair in zip(*parts, strict=True) for _, i in pair] == orders[0]


def test_images_of_rare_classes_come_more_often():
    labels = [[0]] * 90 + [[0, 1]] * 9 + [[1, 2, 2]] + [[]] * 10
    factors = compute_repeat_factors(labels, 3, 0.25)
    # 99, 10 and 1 of 110 images show the classes.
    np.testing.assert_allclose(factors[:90], 1)
    np.testing.assert_allclose(factors[90:99], (0.25 * 110 / 10) ** 0.5)
    assert factors[99] == pytest.approx((0.25 * 110) ** 0.5)
    np.testing.assert_allclose(factors[100:], 1)
    weighted = EpochSampler(110, shuffle=True, seed=1, weights=factors)
    counts = np.zeros(110)
    for epoch in range(40):
        order = take(weighted, epoch)
        # Repetitions are numbered on, so that no two samples of an epoch are alike.
        assert len(set(order)) == len(order) == len(weighted) == 110
        np.add.at(counts, [index % 110 for _, index in order], 1)
    expected = 40 * 110 * factors / factors.sum()
    assert abs(counts - expected)[99] < 8
    assert abs(counts[:90].mean() - expected[0]) < 0.5
    assert take(weighted, 3) == take(EpochSampler(110, shuffle=True, seed=1, weights=factors), 3)
    ranks = [
        take(EpochSampler(110, shuffle=True, seed=1, rank=r, num_replicas=2, weights=factors), 3)
        for r in range(2)
    ]
    assert sorted(ranks[0] + ranks[1]) == sorted(take(weighted, 3))


def test_repeated_tiles_stay_with_their_photo(monkeypatch):
    monkeypatch.setattr(sampler, "_AT_ONCE", 1)
    photos = sampler.Photos(np.repeat(np.arange(5), 4), np.ones(5, np.int64))
    weights = np.where(np.arange(20) == 6, 5.0, 1.0)
    order = take(EpochSampler(20, shuffle=True, photos=photos, weights=weights))
    of = [photos.of_sample[index % 20] for _, index in order]
    assert sum(a != b for a, b in itertools.pairwise(of)) == len(set(of)) - 1
    assert sum(index % 20 == 6 for _, index in order) >= 4
