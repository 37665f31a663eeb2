"""Windows of answers against a reference: alarms where images change, and none where they do not."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import vfm_runtime
from skimage import data
from vfm_runtime.drift.monitor import DriftMonitor, _compute_chi_square, _group_labels, compute_psi
from vfm_runtime.drift.reference import DriftReference, Histogram
from vfm_runtime.tasks.base import score_drift_values
from vfm_runtime.tasks.classification import ClassificationType

from tests.runtime import toy

NUM_AXES, NUM_LABELS = 8, 5
TASK_TYPE = ClassificationType([str(k) for k in range(NUM_LABELS)])


def answers(seed, number=500, shift=0.0, labels=(0.4, 0.3, 0.15, 0.1, 0.05)):
    """Outputs as of a classifier with a reference."""
    random = np.random.default_rng(seed)
    components = random.normal(size=(number, NUM_AXES)).astype(np.float32)
    components[:, 0] += shift
    scores = random.uniform(0, 0.1, (number, NUM_LABELS))
    best = random.choice(NUM_LABELS, number, p=labels)
    scores[np.arange(number), best] = random.beta(5, 1, number) * 0.5 + 0.5
    distances = np.sqrt((components**2).mean(1) / 2 + random.chisquare(20, number) / 40)
    return {"scores": scores.astype(np.float32), "components": components, "distances": distances}


def reference(seed=10**6, number=1000):
    return DriftReference.fit(score_drift_values(answers(seed, number)), {"": NUM_LABELS})


def test_psi_is_as_it_is_defined():
    expected, found = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    by_hand = -0.3 * np.log(0.2 / 0.5) + 0.3 * np.log(0.5 / 0.2)
    assert compute_psi(expected, found) == pytest.approx(by_hand)
    assert compute_psi(expected, expected) == 0


@pytest.mark.parametrize("number", [60, 300, 1000])
def test_images_of_the_same_kind_hardly_ever_alarm(number):
    # Every window beside a reference of its own: one alone may be lucky.
    alarms = 0
    for trial in range(40):
        monitor = DriftMonitor(reference(10**6 + trial, number), window=200, threshold=0.1)
        monitor.add(answers(trial, 5000))
        report = monitor.report()
        assert report.num_windows == 25
        alarms += report.num_alerts
    assert alarms / 1000 < 0.01


@pytest.mark.parametrize(
    ("changes", "figure"),
    [({"shift": 1.0}, "component_0"), ({"labels": (0.05, 0.1, 0.15, 0.3, 0.4)}, "labels")],
)
def test_a_change_alarms_once_a_window(changes, figure):
    alerts = []
    monitor = DriftMonitor(reference(), window=200, on_alert=alerts.append)
    monitor.add(answers(1, 400))
    assert alerts == []
    assert not monitor.report().drifted
    monitor.add(answers(2, 500, **changes))
    assert len(alerts) == 2
    assert alerts[0].figures[0].name == figure
    assert str(alerts[0]).startswith("The last 200 images are unlike those of the validation: ")
    assert alerts[0].report.num_windows == 3
    report = monitor.report()
    assert report.drifted
    assert (report.num_images, report.num_windows, report.num_alerts) == (900, 4, 2)
    assert report.figures[0].psi > report.figures[0].limit
    assert json.loads(json.dumps(report.to_dict()))["figures"][0]["name"] == figure
    # The next window is judged by itself.
    monitor.add(answers(3, 100))
    monitor.add(answers(4, 200))
    assert not monitor.report().drifted


def test_how_images_are_batched_does_not_matter():
    whole, single = DriftMonitor(reference(), window=60), DriftMonitor(reference(), window=60)
    outputs = answers(5, 130, shift=0.5)
    whole.add(outputs)
    for start in range(0, 130, 7):
        single.add({name: values[start : start + 7] for name, values in outputs.items()})
    assert whole.report() == single.report()
    assert sum(whole.report().figures[0].found) == pytest.approx(1)


def test_a_window_too_short_for_the_threshold_has_a_higher_limit(caplog):
    short = DriftMonitor(reference(number=100), window=50, threshold=0.1)
    assert "A window of 50 images beside a reference of 100 passes a PSI of 0.10" in caplog.text
    short.add(answers(1, 50))
    limits = {figure.name: figure.limit for figure in short.report().figures}
    assert limits["component_0"] > 0.5
    caplog.clear()
    long = DriftMonitor(reference(number=20000), window=10000, threshold=0.1)
    long.add(answers(1, 10000))
    assert {figure.limit for figure in long.report().figures} == {0.1}
    assert caplog.text == ""


def test_the_quantile_of_compute_chi_square():
    # scipy.stats.chi2.ppf
    assert _compute_chi_square(9, 0.01) == pytest.approx(21.666, rel=0.005)
    assert _compute_chi_square(19, 0.001) == pytest.approx(43.820, rel=0.005)
    assert _compute_chi_square(1, 0.0005) == pytest.approx(12.116, rel=0.05)
    assert _compute_chi_square(0, 0.01) == 0


def test_what_fails_in_an_alert_stops_no_answer(caplog):
    def broken(alert):
        raise RuntimeError("the pager is out")

    monitor = DriftMonitor(reference(), window=50, on_alert=broken)
    monitor.add(answers(2, 120, shift=3.0))
    assert monitor.report().num_alerts == 2
    assert "The alert of the drift monitor failed" in caplog.text
    assert "the pager is out" in caplog.text


def test_an_alert_may_ask_for_a_report():
    reports = []
    monitor = DriftMonitor(
        reference(), window=50, on_alert=lambda _: reports.append(monitor.report())
    )
    monitor.add(answers(2, 50, shift=3.0))
    assert reports[0].drifted


def test_threads_lose_no_image():
    monitor = DriftMonitor(reference(), window=70)
    parts = [answers(seed, 97) for seed in range(8)]
    threads = [
        threading.Thread(target=lambda part=part: [monitor.add(part) for _ in range(20)])
        for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = monitor.report()
    assert report.num_images == 8 * 97 * 20
    assert report.num_windows == report.num_images // 70
    assert all(sum(figure.found) == pytest.approx(1) for figure in report.figures)


def test_rare_labels_are_counted_together():
    # 1000 labels of a thousandth each: a window shows none of them alone.
    groups = _group_labels([0.001] * 1000)
    assert max(groups) + 1 == 20
    assert _group_labels([0.5, 0.0, 0.47, 0.01, 0.02]) == [0, 2, 1, 2, 2]
    assert _group_labels([0.5, 0.5]) == [0, 1]
    many = DriftReference(1000, {}, {"labels": tuple(np.full(1000, 0.001).tolist())})
    random = np.random.default_rng(0)
    monitor = DriftMonitor(many, window=500)
    same = np.eye(1000, dtype=np.float32)[random.integers(0, 1000, 500)]
    monitor.add({"scores": same})
    assert not monitor.report().drifted
    other = np.eye(1000, dtype=np.float32)[random.integers(0, 200, 500)]
    monitor.add({"scores": other})
    assert monitor.report().drifted


def test_a_label_that_was_never_seen():
    monitor = DriftMonitor(DriftReference(500, {}, {"labels": (0.5, 0.5, 0.0)}), window=100)
    scores = np.eye(3, dtype=np.float32)[[0, 1, 2, 2] * 25]
    monitor.add({"scores": scores})
    assert monitor.report().drifted


def test_of_a_detector_the_best_box_counts():
    scores = np.array([[0.2, 0.9], [0.8, 0.1]], np.float32)
    labels = np.array([[3, 1], [2, 0]])
    found = score_drift_values({"boxes": np.zeros((2, 2, 4)), "labels": labels, "scores": scores})
    assert found["labels"].tolist() == [1, 2]
    assert found["score"].tolist() == pytest.approx([0.9, 0.8])


def test_each_of_several_heads_is_watched():
    scores = np.array([[0.2, 0.8], [0.9, 0.1]] * 30, np.float32)
    outputs = {"colour.scores": scores, "shape.scores": scores[::-1], "distances": np.arange(60.0)}
    made = DriftReference.fit(score_drift_values(outputs), {"colour": 2, "shape": 2})
    assert set(made.histograms) == {"colour.score", "shape.score", "distance"}
    assert set(made.labels) == {"colour.labels", "shape.labels"}
    monitor = DriftMonitor(made, window=60)
    monitor.add(outputs)
    assert not monitor.report().drifted
    monitor.add({**outputs, "shape.scores": np.array([[0.2, 0.8]] * 60)})
    assert {f.name for f in monitor.report().figures if f.drifted} == {
        "shape.labels",
        "shape.score",
    }


def test_equal_values_share_a_bin():
    histogram = Histogram.fit([1.0] * 70 + list(np.linspace(0, 0.9, 30)))
    assert histogram.edges[-1] == 1.0
    assert histogram.shares[-1] == pytest.approx(0.7)
    assert Histogram.fit([2.0] * 10) == Histogram((), (1.0,))
    assert histogram.find_bins(np.array([-1.0, 1.0, 5.0])).tolist() == [
        0,
        len(histogram.edges),
        len(histogram.edges),
    ]


def test_arguments():
    with pytest.raises(ValueError, match=r"window is 20\. Give 50 images or more"):
        DriftMonitor(reference(), window=20)
    with pytest.raises(ValueError, match=r"threshold is 0\. Give a number above 0; usual are 0\.1"):
        DriftMonitor(reference(), threshold=0)
    monitor = DriftMonitor(reference())
    with pytest.raises(ValueError, match=r"The outputs \(scores\) do not say 'component_0'"):
        monitor.add({"scores": np.ones((1, 3))})


def test_a_bundle_without_a_reference(tmp_path):
    with pytest.raises(ValueError, match=r"has no reference\.json, so there is nothing to tell"):
        DriftMonitor(SimpleNamespace(path=tmp_path, task_type=TASK_TYPE))


def test_a_reference_in_a_file(tmp_path):
    made = reference()
    made.write(tmp_path)
    assert DriftReference.load(tmp_path) == made
    assert DriftMonitor(SimpleNamespace(path=tmp_path, task_type=TASK_TYPE)).reference == made


def broken(change):
    values = json.loads(json.dumps(reference().to_dict()))
    change(values)
    return values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop("labels"), "expected an object with the keys num_images, histograms"),
        (lambda v: v.update(more=1), "expected an object with the keys num_images, histograms"),
        (lambda v: v.update(num_images=0), "'num_images' is 0; expected a whole number from 1"),
        (lambda v: v.update(num_images=True), "'num_images' is True; expected a whole number"),
        (lambda v: v.update(histograms=[]), r"'histograms' is \[\]; expected an object"),
        (lambda v: v.update(histograms={}, labels={}), "expected at least one figure"),
        (lambda v: v["histograms"]["score"].pop("edges"), "'score' is .*expected an object with"),
        (lambda v: v["histograms"]["score"]["edges"].reverse(), "each is larger than the one"),
        (lambda v: v["histograms"]["score"]["edges"].pop(), "numbers, one more than edges"),
        (lambda v: v["labels"].update(labels=[0.5, 0.6]), "from 0 that add up to 1"),
        (lambda v: v["labels"].update(labels=[0.5, "a"]), "'labels' is 'a'; expected numbers"),
        (lambda v: v["labels"].update(labels=0.5), "'labels' is 0.5; expected a list of numbers"),
        (lambda v: v["labels"].update(labels=[-0.5, 1.5]), "from 0 that add up to 1"),
    ],
)
def test_a_damaged_reference_is_refused(change, said, tmp_path):
    values = broken(change)
    with pytest.raises(ValueError, match=said):
        DriftReference.from_dict(values)
    (tmp_path / "reference.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"reference\.json is no reference: "):
        DriftReference.load(tmp_path)


def crops(seed, number=300):
    """Places of real photos."""
    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    random = np.random.default_rng(seed)
    for index in range(number):
        photo = photos[index % len(photos)]
        top, left = (int(random.integers(0, side - 120)) for side in photo.shape[:2])
        yield photo[top : top + 120, left : left + 120]


def dark(photo):
    return (photo * 0.25).astype(np.uint8)


def outputs_of(model, photos):
    pixels = np.concatenate([model.prepare(photo)["pixels"] for photo in photos])
    return model.run({"pixels": pixels})


def test_dark_photos_through_a_model(tmp_path):
    folder = toy.build(tmp_path / "bundle")
    model = vfm_runtime.load(folder, device="cpu")
    made = DriftReference.fit(
        score_drift_values(outputs_of(model, crops(0))), {"": len(toy.LABELS)}
    )
    made.write(folder)
    toy.write_vfm_json(folder)
    model = vfm_runtime.load(folder, device="cpu")
    model.monitor = DriftMonitor(model, window=300)
    alerts = []
    for number, change in enumerate((np.asarray, dark, np.asarray), start=1):
        outputs_of(model, map(change, crops(number)))
        report = model.monitor.report()
        assert report.num_windows == number
        alerts.append(report.drifted)
    assert alerts == [False, True, False]
