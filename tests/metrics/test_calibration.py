import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import beta

from vfm.metrics.calibration import (
    TooFewError,
    bound_rate,
    compute_calibration_error,
    count_required_samples,
    find_best_f1,
    find_precision_cut,
    fit_class_temperature,
    fit_conformal_threshold,
    fit_label_temperature,
    fit_temperature,
    measure_reliability,
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
    best = minimize_scalar(lambda t: measure_reliability(logits / t, fake)["nll"], (1, 5)).x
    assert fit_temperature(logits, fake) == pytest.approx(best, rel=0.01)


def test_classes_that_do_not_overlap_have_a_temperature_all_the_same():
    # One sample a class: a target of 2/3, whose logit is log 2.
    assert fit_temperature([-1.0, 1.0], [False, True]) == pytest.approx(1 / np.log(2))


def test_temperature_refuses_swapped_labels_and_a_single_class():
    logits, fake = drawn(500)
    with pytest.raises(ValueError, match="labels are not swapped"):
        fit_temperature(logits, ~fake)
    with pytest.raises(ValueError, match=r"All 3 are positive.*add the others"):
        fit_temperature([1.0, 2.0, 3.0], [True] * 3)


def test_reliability_of_true_odds_is_small_and_of_scaled_ones_is_not():
    logits, fake = drawn(40_000)
    good, bad = measure_reliability(logits, fake), measure_reliability(5 * logits, fake)
    assert good["ece"] < 0.015
    assert bad["ece"] > 0.05
    assert bad["nll"] > good["nll"]
    assert bad["brier"] > good["brier"]
    assert len(good["bins"]) == 15
    assert sum(row["num"] for row in good["bins"]) == 40_000


def test_reliability_by_hand():
    found = measure_reliability([np.log(3), -np.log(3)], [True, False])
    assert found["brier"] == pytest.approx(1 / 16)
    assert found["nll"] == pytest.approx(-np.log(0.75))
    assert found["ece"] == pytest.approx(0.25)
    assert measure_reliability([1.0, 2.0], [True, True])["ece"] is None


def test_equal_scores_share_a_bin_in_any_order():
    logits, fake = np.zeros(100), np.arange(100) < 50
    order = np.random.default_rng(0).permutation(100)
    assert measure_reliability(logits, fake) == measure_reliability(logits[order], fake[order])
    assert measure_reliability(logits, fake)["ece"] == pytest.approx(0)


@pytest.mark.parametrize(("rate", "number"), [(0.1, 25), (0.05, 19), (0.05, 60), (0.01, 199)])
def test_of_new_reals_at_most_the_promised_share_passes(rate, number):
    # The share of new reals above the threshold is known exactly for uniform values: no error of counting.
    random = np.random.default_rng(0)
    draws = 4000
    passed = [1 - fit_conformal_threshold(random.random(number), rate) for _ in range(draws)]
    error = 3 * np.std(passed) / np.sqrt(draws)
    assert np.mean(passed) <= rate + error
    # And it wastes no more than a sample's worth.
    assert np.mean(passed) >= rate - 1 / (number + 1) - error


def test_a_threshold_between_ties_errs_on_the_safe_side():
    random = np.random.default_rng(1)
    passed = []
    for _ in range(300):
        values = random.integers(0, 5, 2000)
        passed.append((values[60:] > fit_conformal_threshold(values[:60], 0.1)).mean())
    assert np.mean(passed) <= 0.1


def test_the_bound_of_one_threshold_holds_as_often_as_it_says():
    random = np.random.default_rng(2)
    held = []
    for _ in range(2000):
        values = random.random(100)
        limit = fit_conformal_threshold(values, 0.05)
        held.append(1 - limit <= bound_rate(int((values > limit).sum()), 100))
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("rate", "number"), [(0.001, 999), (0.01, 99), (0.05, 19), (0.1, 9)])
def test_too_few_reals_are_refused_and_told_how_many(rate, number):
    assert count_required_samples(rate) == number
    assert fit_conformal_threshold(np.arange(number), rate) == number - 1
    text = rf"There are {number - 1} reals, too few .* at least {number}, .* Add reals, or allow"
    with pytest.raises(TooFewError, match=text):
        fit_conformal_threshold(np.arange(number - 1), rate)


def test_what_the_refusal_allows_is_enough():
    with pytest.raises(TooFewError, match=r"allow 5\.3 % or more") as caught:
        fit_conformal_threshold(np.arange(18), 0.01)
    assert "about 300 to confirm it" in str(caught.value)
    assert fit_conformal_threshold(np.arange(18), 0.053) == 17


def test_rates_and_values_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"rate is 1.*For 1 % give 0\.01"):
        fit_conformal_threshold([1.0], 1)
    with pytest.raises(ValueError, match="1 of 2 values of reals are not finite"):
        fit_conformal_threshold([1.0, np.inf], 0.5)
    with pytest.raises(ValueError, match="4 errors of 3 make no rate"):
        bound_rate(4, 3)


@pytest.mark.parametrize(
    ("errors", "number", "percent"),
    [(0, 178, 1.67), (0, 500, 0.60), (0, 1000, 0.30), (1, 1000, 0.47), (0, 3000, 0.10)],
)
def test_largest_rate_is_the_exact_bound(errors, number, percent):
    assert 100 * bound_rate(errors, number) == pytest.approx(percent, abs=0.005)
    expected = beta.ppf(0.95, errors + 1, number - errors)
    assert bound_rate(errors, number) == pytest.approx(expected)
    assert bound_rate(number, number) == 1


def drawn_classes(seed, number, classes, sharpness):
    """Logits whose softmax is true once they are divided by `sharpness`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (number, classes))
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (chance.cumsum(1) > random.random((number, 1))).argmax(1)
    return logits * sharpness, truth


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0])
def test_the_temperature_of_classes_is_found(sharpness):
    logits, truth = drawn_classes(0, 4000, 5, sharpness)
    found = fit_class_temperature(logits, truth)
    assert found == pytest.approx(sharpness, rel=0.1)
    # A constant for each image, as between logits and logarithms of scores, changes nothing.
    assert fit_class_temperature(logits + 7, truth) == pytest.approx(found, rel=1e-4)


def error_of(logits, truth, temperature):
    divided = logits / temperature
    powers = np.exp(divided - divided.max(1, keepdims=True))
    chance = powers / powers.sum(1, keepdims=True)
    return compute_calibration_error(chance.max(1), chance.argmax(1) == truth)


def test_on_other_images_the_calibration_error_falls():
    logits, truth = drawn_classes(1, 1000, 10, 4.0)
    others, true = drawn_classes(2, 5000, 10, 4.0)
    temperature = fit_class_temperature(logits, truth)
    assert error_of(others, true, 1.0) > 0.15
    assert error_of(others, true, temperature) < 0.03


def test_answers_that_are_all_right_do_not_prove_certainty():
    logits = np.eye(4)[np.arange(100) % 4] * 2.0
    found = fit_class_temperature(logits, np.arange(100) % 4)
    chance = np.exp(2 / found) / (np.exp(2 / found) + 3)
    assert chance == pytest.approx(101 / 102, abs=1e-4)
    # Nor do wrong ones prove more than the limits.
    assert fit_class_temperature(logits, (np.arange(100) + 1) % 4) == pytest.approx(20, rel=1e-3)
    assert fit_class_temperature(logits / 1000, np.arange(100) % 4) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("sharpness", [0.3, 2.5])
def test_the_temperature_of_independent_labels_is_found(sharpness):
    random = np.random.default_rng(0)
    logits = random.normal(-1, 2, (3000, 4))
    truth = random.random(logits.shape) < expit(logits)
    assert fit_label_temperature(logits * sharpness, truth) == pytest.approx(sharpness, rel=0.1)


def test_rare_labels_of_few_images_do_not_raise_the_temperature():
    fitted = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        logits = random.normal(-5, 2.5, (60, 20))
        fitted.append(fit_label_temperature(logits, random.random(logits.shape) < expit(logits)))
    assert np.mean(fitted) == pytest.approx(1, abs=0.03)


def test_calibration_error_by_hand():
    assert compute_calibration_error([0.8] * 10, [True] * 6 + [False] * 4) == pytest.approx(0.2)
    assert compute_calibration_error([0.0, 1.0], [False, True]) == 0
    assert compute_calibration_error([0.9] * 5 + [0.1] * 5, [True] * 10) == pytest.approx(0.5)


def test_a_precision_is_proved_not_seen():
    scores = np.linspace(1, 0, 101)[:100]
    right = np.arange(100) < 80
    cut, best = find_precision_cut(scores, right, 0.9)
    # Of the 80 right ones first and some wrong ones after, no more than the exact interval allows.
    assert cut.precision >= 0.9
    assert cut.bound >= 0.9
    assert 1 - bound_rate(cut.num - 80, cut.num) == pytest.approx(cut.bound)
    assert 1 - bound_rate(cut.num + 1 - 80, cut.num + 1) < 0.9
    assert scores[cut.num] < cut.threshold < scores[cut.num - 1]
    assert best.num == 80
    none, best = find_precision_cut(scores, right, 0.99)
    assert none is None
    assert best.bound == pytest.approx(0.05 ** (1 / 80))


def test_equal_scores_are_cut_together():
    cut, _ = find_precision_cut([1.0] * 60 + [0.5] * 40, [True] * 60 + [False] * 40, 0.9)
    assert (cut.num, cut.threshold) == (60, 0.75)
    none, best = find_precision_cut([1.0] * 100, [True] * 60 + [False] * 40, 0.9)
    assert none is None
    assert best.num == 100


def test_the_precision_holds_on_other_images():
    random = np.random.default_rng(0)
    kept, right = 0, 0
    for _ in range(200):
        scores = random.random(400)
        cut, _ = find_precision_cut(scores, random.random(400) < scores, 0.8)
        others = random.random(1000)
        if cut is not None:
            sure = others >= cut.threshold
            kept += sure.sum()
            right += (random.random(1000) < others)[sure].sum()
    assert kept > 1000
    assert right / kept > 0.8


def test_best_f1():
    assert find_best_f1([0.9, 0.8, 0.3, 0.2], [True, True, False, False]) == (
        pytest.approx(0.55),
        1.0,
    )
    threshold, f1 = find_best_f1([0.9, 0.9, 0.9, 0.1], [True, False, True, True])
    assert threshold == pytest.approx(0.05)
    assert f1 == pytest.approx(6 / 7)


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(ValueError, match=r"log scores have shape \(3,\), the true classes \(3,\)"):
        fit_class_temperature([1.0, 2.0, 3.0], [0, 0, 0])
    with pytest.raises(ValueError, match=r"logits have shape \(2, 2\), the true labels \(2,\)"):
        fit_label_temperature(np.zeros((2, 2)), [0, 1])
    with pytest.raises(ValueError, match=r"\(0,\) probabilities and \(0,\) answers"):
        compute_calibration_error([], [])
    with pytest.raises(ValueError, match=r"least is 95, .* For 1 % give 0\.01"):
        find_precision_cut([0.5], [True], 95)
