"""Groups found without labels: found on one half of the images, confirmed on the other, or not shown."""

import numpy as np
import pytest

from vfm.audit.comparison import ClusterSampler, RatioMetric
from vfm.audit.slices import find_slices, list_traits


def search(right, traits, vectors=None, seed=0):
    sampler = ClusterSampler.from_keys(None, len(right), seed)
    sampler.num_resamples = 50
    metric = RatioMetric("accuracy", right.astype(float), np.ones(len(right)))
    return find_slices(metric, traits, vectors, sampler)


def test_a_planted_cluster_and_a_trait_are_found():
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 8, 1600)
    vectors = rng.standard_normal((8, 16))[cluster] + 0.2 * rng.standard_normal((1600, 16))
    brightness = rng.uniform(0, 255, 1600)
    bad, dark = cluster == 2, brightness < 40
    right = rng.random(1600) > np.where(bad | dark, 0.5, 0.05)
    result = search(right, {"brightness": brightness}, vectors.astype(np.float32))
    members = [each.candidate.member for each in result.confirmed]
    assert any((member & bad).sum() > 0.9 * max(member.sum(), bad.sum()) for member in members)
    (named,) = (each for each in result.confirmed if each.candidate.name.startswith("the darkest"))
    assert named.confirmation.gap.value == pytest.approx(-0.3, abs=0.15)
    row = result.to_dict()["confirmed"][0]
    assert row["gap"]["high"] < 0
    assert row["adjusted_p_value"] < 0.01


@pytest.mark.slow
def test_nothing_is_invented():
    shown = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        traits = {name: rng.random(600) for name in ("brightness", "size")}
        vectors = rng.standard_normal((600, 8)).astype(np.float32)
        shown += bool(search(rng.random(600) > 0.1, traits, vectors, seed).confirmed)
    assert shown <= 2


def test_a_group_on_which_the_model_is_better_is_not_shown():
    rng = np.random.default_rng(1)
    brightness = rng.uniform(0, 255, 1000)
    right = rng.random(1000) > np.where(brightness > 200, 0.0, 0.3)
    names = [each.candidate.name for each in search(right, {"brightness": brightness}).confirmed]
    assert not any("brightest" in name for name in names)


def test_traits_that_all_images_share_are_no_groups():
    rows = [
        {"brightness": 1.0, "contrast": float(i), "saturation": 2.0, "sharpness": 3.0}
        for i in range(100)
    ]
    rows = [row | {"width": 20.0, "height": 10.0} for row in rows]
    traits = list_traits(rows)
    assert traits["aspect"].tolist() == [2.0] * 100
    result = search(np.arange(100) % 3 > 0, traits)
    assert result.num_candidates == 2  # low and high contrast
