import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from vfm.deepfake.metrics import (
    LostVideo,
    average_by_video,
    bound_failures,
    compute_auc,
    compute_deepfake_results,
)
from vfm.metrics.roc import ClusteredScores, Roc

RNG = np.random.default_rng(0)


def drawn(number=120, decimals=1):
    """Logits with ties, truth, and how often each counts."""
    fake = RNG.random(number) < 0.4
    fake[:2] = [False, True]
    counts = RNG.integers(0, 4, number)
    counts[:2] = 1
    return np.round(RNG.normal(size=number) + fake, decimals), fake, counts


def split(num_videos=60, num_frames=3, methods=("", "swap", "reenact"), shift=2.0):
    """Logits, labels and groups of frames: every third video is real, five videos show a person."""
    logits, labels, groups = [], [], []
    for video in range(num_videos):
        method = methods[video % len(methods)]
        mean = RNG.normal() + shift * (method != "")
        for _ in range(num_frames):
            logits.append(mean + 0.3 * RNG.normal())
            labels.append(int(method != ""))
            groups.append(("set", method, f"{video // 3:03d}", f"person{video // 5}"))
    return np.array(logits), np.array(labels), groups


def parts(groups):
    """Videos, and the names of those that belong together, of frames."""
    return [row[:3] for row in groups], [row[3] for row in groups]


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_figures_are_those_of_sklearn_with_ties_and_weights(decimals):
    for _ in range(10):
        logits, fake, counts = drawn(decimals=decimals)
        roc = Roc(logits, fake)
        for weight in (np.ones_like(counts), counts):
            x, y, _ = roc_curve(fake, logits, sample_weight=weight, drop_intermediate=False)
            equal = brentq(lambda rate, x=x, y=y: 1 - rate - np.interp(rate, x, y), 0, 1)
            assert roc.eer(weight[None])[0] == pytest.approx(equal, abs=1e-9)
            area = roc_auc_score(fake, logits, sample_weight=weight, max_fpr=0.1)
            assert roc.partial_auc(0.1, weight[None])[0] == pytest.approx(area)
            for rate in (0.001, 0.01, 0.05, 0.3):
                best = y[x <= rate * (1 + 1e-9)].max()
                assert roc.tpr_at_fpr(rate, weight[None])[0] == pytest.approx(best)


def test_equal_error_rate_lies_on_the_straight_line_between_two_thresholds():
    # The points (0, 0), (1/3, 1/2), (1, 1): the line 1 - x meets the second at x = 0.4, a grid would say 1/3.
    logits, fake = [2, 2, 1, 1, 1], [False, True, False, True, False]
    roc = Roc(logits, fake)
    x = 1 / 3 + (1 - 1 / 3) * (1 - 1 / 3 - 1 / 2) / ((1 - 1 / 3 - 1 / 2) + 1)
    assert roc.eer()[0] == pytest.approx(x)
    assert 1 < roc.eer_threshold() < 2
    assert Roc([0, 1], [False, True]).eer()[0] == 0
    assert Roc([1, 0], [False, True]).eer()[0] == 1
    assert Roc([1, 1], [False, True]).eer()[0] == 0.5


def test_a_side_that_is_missing_makes_every_figure_undefined():
    roc = Roc([1.0, 2.0], [True, True])
    for figure in (roc.eer(), roc.tpr_at_fpr(0.01), roc.partial_auc(0.1)):
        assert np.isnan(figure).all()
    assert compute_auc([1.0, 2.0], [False, False]) is None


def test_too_few_reals_allow_no_false_alarm_and_say_so():
    fake = np.array([False] * 50 + [True] * 50)
    logits = np.concatenate([np.arange(50.0), np.arange(50.0) + 10.5])
    rows = ClusteredScores(logits, fake, np.arange(100), 100).estimate_all()["tpr_at_fpr"]
    assert [row["false_alarms_allowed"] for row in rows] == [0, 0, 2]
    # Ten fakes lie above the highest real, two more above the third highest.
    assert [row["value"] for row in rows] == [0.22, 0.22, 0.26]


def test_area_by_clusters_is_the_area_of_drawn_samples():
    logits, fake, _ = drawn(400)
    clusters = RNG.integers(0, 20, 400)
    scores = ClusteredScores(logits, fake, clusters, 20)
    counts = RNG.multinomial(20, np.full(20, 1 / 20), size=5)
    for row, value in zip(counts, scores.auc(counts), strict=True):
        expected = roc_auc_score(fake, logits, sample_weight=row[clusters])
        assert value == pytest.approx(expected)


def test_interval_draws_people_not_videos():
    # Ten people of twenty equal videos each: only ten things are independent.
    people = np.repeat(np.arange(10), 20)
    fake = people % 2 == 1
    person = np.array([0.0, 1, 2, 3, 4, 2.5, 1.5, 5, 6, 7])
    logits = person[people] + 0.01 * RNG.normal(size=200)
    wide = ClusteredScores(logits, fake, people, 10).estimate_auc()
    narrow = ClusteredScores(logits, fake, np.arange(200), 200).estimate_auc()
    assert wide["value"] == pytest.approx(narrow["value"])
    assert wide["high"] - wide["low"] > 3 * (narrow["high"] - narrow["low"])
    single = ClusteredScores(logits, fake, np.zeros(200, int), 1).estimate_auc()
    assert single["value"] is not None
    assert single["low"] is None


def test_average_precision_of_both_sides_is_that_of_sklearn():
    logits, fake, _ = drawn(300)
    figures = ClusteredScores(logits, fake, np.arange(300), 300).estimate_all()
    of_fake = average_precision_score(fake, logits)
    of_real = average_precision_score(~fake, -logits)
    assert figures["average_precision"]["value"] == pytest.approx(of_fake)
    assert figures["average_precision_real"]["value"] == pytest.approx(of_real)
    assert figures["mean_average_precision"] == pytest.approx((of_fake + of_real) / 2)
    assert figures["prevalence"] == fake.mean()


def test_a_video_scores_its_mean_logit():
    keys = [("d", "", "a"), ("d", "m", "a"), ("d", "", "a")]
    videos = average_by_video([1.0, 5.0, 3.0], [0, 1, 0], keys)
    assert videos.keys == [("d", "", "a"), ("d", "m", "a")]
    assert videos.logits.tolist() == [2.0, 5.0]
    assert videos.fake.tolist() == [False, True]
    assert videos.num_frames.tolist() == [2, 1]
    assert videos.spread.tolist() == [1.0, 0.0]
    assert videos.of_frame.tolist() == [0, 1, 0]


def test_trap_05_equal_names_of_several_methods_are_several_videos():
    names = [("FF++", method, "000_003") for method in ("Deepfakes", "FaceSwap")]
    assert len(average_by_video([1.0, -1.0], [1, 1], names).keys) == 2
    mixed = [("FF++", "", "000"), ("FF++", "", "000")]
    with pytest.raises(ValueError, match=r"1 videos have frames labelled real.*'000'.*1 of 2"):
        average_by_video([1.0, -1.0], [0, 1], mixed)


@pytest.mark.parametrize(
    ("logits", "labels", "text"),
    [
        ([np.nan, 1.0], [0, 1], "1 of 2 logits are not finite"),
        ([0.0, 1.0], [0, 2], r"Labels are \[2\] besides 0 and 1"),
        ([0.0, 1.0], [0], "one of each for every frame"),
    ],
)
def test_what_cannot_be_ranked_is_refused(logits, labels, text):
    with pytest.raises(ValueError, match=text):
        average_by_video(logits, labels, [("d", "", "a"), ("d", "m", "b")])


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match="There are no frames to score"):
        average_by_video([], [], [])


def test_trap_07_the_pooled_area_is_not_the_mean_over_batches():
    # Scores that drift from batch to batch: each batch alone is ranked well, all together are not.
    fake = np.tile([False, True], 50)
    drift = np.repeat(np.arange(10.0), 10)
    logits = drift + 0.5 * fake + 0.01 * RNG.normal(size=100)
    batches = [compute_auc(logits[i : i + 10], fake[i : i + 10]) for i in range(0, 100, 10)]
    groups = [("d", "m" if f else "", str(i), str(i)) for i, f in enumerate(fake)]
    pooled = compute_deepfake_results(logits, fake.astype(int), *parts(groups))["video_auc"][
        "value"
    ]
    assert np.mean(batches) == 1
    assert pooled == pytest.approx(roc_auc_score(fake, logits))
    assert pooled < 0.6


def test_methods_are_told_from_the_same_reals_the_worst_first():
    logits, labels, groups = split()
    hard = np.array([row[1] == "reenact" for row in groups])
    results = compute_deepfake_results(
        logits - 1.5 * hard, labels, *parts(groups), trained_on={"swap"}
    )
    rows = results["per_method"]
    assert [row["method"] for row in rows] == ["reenact", "swap"]
    assert results["worst_method"] == rows[0]
    assert {row["num_reals"] for row in rows} == {20}
    assert [row["seen"] for row in rows] == [False, True]
    assert results["unseen_auc"] == rows[0]["auc"]
    mean = (rows[0]["auc"] + rows[1]["auc"]) / 2
    assert results["macro_auc"]["value"] == pytest.approx(mean)
    assert rows[0]["low"] < rows[0]["auc"] < rows[0]["high"]


def test_leaving_a_method_out_leaves_the_others():
    logits, labels, groups = split()
    results = compute_deepfake_results(logits, labels, *parts(groups))
    rows = {row["method"]: row["auc"] for row in results["per_method"]}
    for row in results["without_method"]:
        (other,) = set(rows) - {row["left_out"]}
        assert row["macro_auc"] == pytest.approx(rows[other])
        assert row["auc"] == pytest.approx(rows[other])


def test_each_data_set_has_its_own_reals_where_it_has_any():
    logits, labels, groups = split()
    more = [("other", "swap", "x", "p1"), ("third", "swap", "y", "p2"), ("third", "", "z", "p2")]
    found = compute_deepfake_results(
        np.append(logits, [9.0, -9.0, 0.0]), np.append(labels, [1, 1, 0]), *parts(groups + more)
    )
    rows = {row["dataset"]: row for row in found["per_method"] if row["method"] == "swap"}
    assert [rows[name]["num_reals"] for name in ("set", "other", "third")] == [20, 21, 1]
    assert [rows[name]["own_reals"] for name in ("set", "other", "third")] == [True, False, True]
    assert rows["third"]["auc"] == 0
    assert [row["dataset"] for row in found["per_dataset"]] == ["set", "other", "third"]
    assert found["per_dataset"][1]["auc"] is None


def test_trap_21_failures_are_their_own_class():
    keys = [("d", "", "r1"), ("d", "", "r2"), ("d", "m", "f1"), ("d", "m", "f2")]
    videos = average_by_video([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1], keys)
    lost = [LostVideo(("d", "m", "f3"), 1), LostVideo(("d", "", "r3"), 0)]
    figures = bound_failures(videos, lost)
    assert figures["num_reals"] == figures["num_fakes"] == 1
    assert figures["excluded_auc"] == 1
    # Of nine pairs the four of scored videos are right; every pair with a failure is wrong.
    assert figures["worst_case_auc"] == pytest.approx(4 / 9)


def test_one_class_alone_gives_counts_and_no_areas():
    found = compute_deepfake_results(
        [1.0, 2.0], [0, 0], *parts([("d", "", "a", "a"), ("d", "", "b", "b")])
    )
    assert found["video_auc"] == {"value": None, "low": None, "high": None}
    assert found["macro_auc"]["value"] is None
    assert found["per_method"] == []
    assert found["worst_method"] is None
    assert found["video"]["eer_threshold"] is None


def test_shuffled_labels_are_a_coin_within_the_interval():
    fake = RNG.permutation(np.arange(200) < 100)
    groups = [("d", "m" if f else "", str(i), str(i)) for i, f in enumerate(fake)]
    found = compute_deepfake_results(RNG.normal(size=200), fake.astype(int), *parts(groups))[
        "video_auc"
    ]
    assert found["low"] < 0.5 < found["high"]
