import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from vfm.metrics.calibration import (
    TooFewError,
    conformal_threshold,
    fit_temperature,
    largest_rate,
    least_number,
    reliability,
    sigmoid,
)


def drawn(number, scale=1.0, seed=0):
    """Logits that are the true log odds of equally frequent classes, times a scale."""
    random = np.random.default_rng(seed)
    fake = random.random(number) < 0.3
    return scale * 2 * (random.normal(size=number) + np.where(fake, 1, -1)), fake


@pytest.mark.parametrize("scale", [1e-3, 0.5, 1.0, 4.0, 1e4])
def test_temperature_undoes_a_scale(scale):
    logits, fake = drawn(20_000, scale)
    assert fit_temperature(logits, fake) == pytest.approx(scale, rel=0.05)


def test_temperature_is_the_minimum_of_the_balanced_likelihood():
    logits, fake = drawn(5000, 3.0)
    best = minimize_scalar(lambda t: reliability(logits / t, fake)["nll"], (1, 5)).x
    assert fit_temperature(logits, fake) == pytest.approx(best, rel=0.01)


def test_classes_that_do_not_overlap_have_a_temperature_all_the_same():
    # One sample a class: a target of 2/3, whose logit is log 2.
    assert fit_temperature([-1.0, 1.0], [False, True]) == pytest.approx(1 / np.log(2))


def test_temperature_refuses_swapped_labels_and_a_single_class():
    logits, fake = drawn(500)
    with pytest.raises(ValueError, match="labels are not swapped"):
        fit_temperature(logits, ~fake)
    with pytest.raises(ValueError, match=r"All 3 videos are fakes.*add the others"):
        fit_temperature([1.0, 2.0, 3.0], [True] * 3)


def test_reliability_of_true_odds_is_small_and_of_scaled_ones_is_not():
    logits, fake = drawn(40_000)
    good, bad = reliability(logits, fake), reliability(5 * logits, fake)
    assert good["ece"] < 0.015
    assert bad["ece"] > 0.05
    assert bad["nll"] > good["nll"]
    assert bad["brier"] > good["brier"]
    assert len(good["bins"]) == 15
    assert sum(row["num"] for row in good["bins"]) == 40_000


def test_reliability_by_hand():
    found = reliability([np.log(3), -np.log(3)], [True, False])
    assert found["brier"] == pytest.approx(1 / 16)
    assert found["nll"] == pytest.approx(-np.log(0.75))
    assert found["ece"] == pytest.approx(0.25)
    assert reliability([1.0, 2.0], [True, True])["ece"] is None


def test_equal_scores_share_a_bin_in_any_order():
    logits, fake = np.zeros(100), np.arange(100) < 50
    order = np.random.default_rng(0).permutation(100)
    assert reliability(logits, fake) == reliability(logits[order], fake[order])
    assert reliability(logits, fake)["ece"] == pytest.approx(0)


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise"):
        assert sigmoid([-700.0, 0.0, 700.0]).tolist() == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize(("rate", "number"), [(0.1, 25), (0.05, 19), (0.05, 60), (0.01, 199)])
def test_of_new_reals_at_most_the_promised_share_passes(rate, number):
    # The share of new reals above the threshold is known exactly for uniform values: no error of counting.
    random = np.random.default_rng(0)
    draws = 4000
    passed = [1 - conformal_threshold(random.random(number), rate) for _ in range(draws)]
    error = 3 * np.std(passed) / np.sqrt(draws)
    assert np.mean(passed) <= rate + error
    # And it wastes no more than a sample's worth.
    assert np.mean(passed) >= rate - 1 / (number + 1) - error


def test_a_threshold_between_ties_errs_on_the_safe_side():
    random = np.random.default_rng(1)
    passed = []
    for _ in range(300):
        values = random.integers(0, 5, 2000)
        passed.append((values[60:] > conformal_threshold(values[:60], 0.1)).mean())
    assert np.mean(passed) <= 0.1


def test_the_bound_of_one_threshold_holds_as_often_as_it_says():
    random = np.random.default_rng(2)
    held = []
    for _ in range(2000):
        values = random.random(100)
        limit = conformal_threshold(values, 0.05)
        held.append(1 - limit <= largest_rate(int((values > limit).sum()), 100))
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("rate", "number"), [(0.001, 999), (0.01, 99), (0.05, 19), (0.1, 9)])
def test_too_few_reals_are_refused_and_told_how_many(rate, number):
    assert least_number(rate) == number
    assert conformal_threshold(np.arange(number), rate) == number - 1
    text = rf"There are {number - 1} reals, too few .* at least {number}, .* Add reals, or allow"
    with pytest.raises(TooFewError, match=text):
        conformal_threshold(np.arange(number - 1), rate)


def test_what_the_refusal_allows_is_enough():
    with pytest.raises(TooFewError, match=r"allow 5\.3 % or more") as caught:
        conformal_threshold(np.arange(18), 0.01)
    assert "about 300 to confirm it" in str(caught.value)
    assert conformal_threshold(np.arange(18), 0.053) == 17


def test_rates_and_values_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"rate is 1.*For 1 % give 0\.01"):
        conformal_threshold([1.0], 1)
    with pytest.raises(ValueError, match="1 of 2 values of reals are not finite"):
        conformal_threshold([1.0, np.inf], 0.5)
    with pytest.raises(ValueError, match="4 errors of 3 make no rate"):
        largest_rate(4, 3)


@pytest.mark.parametrize(
    ("errors", "number", "percent"),
    [(0, 178, 1.67), (0, 500, 0.60), (0, 1000, 0.30), (1, 1000, 0.47), (0, 3000, 0.10)],
)
def test_largest_rate_is_the_exact_bound(errors, number, percent):
    assert 100 * largest_rate(errors, number) == pytest.approx(percent, abs=0.005)
    expected = beta.ppf(0.95, errors + 1, number - errors)
    assert largest_rate(errors, number) == pytest.approx(expected)
    assert largest_rate(number, number) == 1
