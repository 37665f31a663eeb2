"""Conformal sets: coverage on average over fits, APS larger where it is hard, and the group that gets less."""

import numpy as np
import pytest
from vfm_runtime.errors import OptionError

from vfm.audit.comparison import ClusterSampler
from vfm.audit.conformal import METHODS, check_level, describe_conformal, measure_conformal
from vfm.audit.kinds import KINDS


def draw(number, seed):
    """Scores of four labels that are too sure, for half of the images far more."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 4, number)
    hard = np.arange(number) % 2 == 1
    logits = (
        rng.normal(0, 1, (number, 4)) + 3.0 * np.eye(4)[target] * np.where(hard, 0.4, 1)[:, None]
    )
    odds = np.exp(2 * logits)
    scores = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
    return scores, target, {"kind": np.where(hard, "hard", "easy").tolist()}


def measure(number, seed, level=0.9, keys=None):
    return measure_conformal(
        *draw(number, seed), ClusterSampler.from_keys(keys, number, seed), level
    )


def test_the_promise_holds_on_average_over_fits():
    rows = [measure(200, seed)["methods"] for seed in range(40)]
    for method in METHODS:
        covered = [row[method]["coverage"]["value"] for row in rows]
        # 40 fits of 100 images, each measured on 100: the mean has a standard error of 0.7 points.
        assert 0.885 < np.mean(covered) < 0.925


def test_the_group_that_gets_less_is_said():
    result = measure(2000, 0)
    lac, aps = result["methods"]["LAC"], result["methods"]["APS"]
    hard = {row["group"]: row for row in lac["groups"]}["kind=hard"]
    assert hard["is_below"]
    assert hard["coverage"]["high"] < 0.9
    assert lac["mean_size"]["value"] < aps["mean_size"]["value"]
    assert any(
        s.startswith("kind=hard gets less than all (LAC)") for s in describe_conformal(result)
    )
    assert lac["fraction_empty"] + lac["fraction_of_one_label"] <= 1


def test_what_belongs_together_is_in_one_half_and_too_few_images_are_said():
    keys = [str(i // 500) for i in range(1000)]
    assert measure(1000, 0, keys=keys)["num_fitted"] == 500
    few = measure(30, 0, level=0.99)
    assert few["methods"] == {}
    assert describe_conformal(few)[0].startswith("No conformal sets: There are 15 images, too few")


def test_what_has_no_such_sets_is_refused():
    check_level(None, KINDS["detection"], "detection")
    with pytest.raises(OptionError, match="and this one's task is 'detection'"):
        check_level(0.9, KINDS["detection"], "detection")
