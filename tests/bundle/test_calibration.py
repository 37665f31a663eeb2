"""Temperature and thresholds for a bundle, from validation images."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.tasks.confidence import ConfidenceRules, soften_scores

from tests.tasks.tiny import shapes, vit
from vfm.bundle.onnx_graphs import ExportedModel
from vfm.data import SyntheticScenes
from vfm.data.records import Record
from vfm.deepfake.validation import DeepfakeValidation
from vfm.tasks.calibration import CalibrationError
from vfm.tasks.classification.calibration import fit_labels
from vfm.tasks.classification.validation import LabelValidation
from vfm.tasks.detection.validation import BoxValidation
from vfm.tasks.labeled_images import LabeledImages, OpenedImages, open_images

LABELS = ("ant", "bee", "cat", "dog")


def images(data):
    source = LabeledImages.select_splits(data, ["val"])
    return OpenedImages({"pixels": np.zeros((len(source.positions), 1, 1, 3), np.uint8)}, source)


def labelled(truth, *, multilabel=False, labels=LABELS):
    """Validation of images that nobody opens."""
    records = {"val": [Record("", label, str(index)) for index, label in enumerate(truth)]}
    data = SimpleNamespace(labels=labels, multilabel=multilabel, records=records)
    return LabelValidation(labels, images(data), multilabel=multilabel)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def answers(number, sharpness, seed=0, classes=4):
    """Scores of a model that is too sure of itself by a factor, and what is true."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2.5, (number, classes))
    chance = softmax(logits).astype(np.float64)
    truth = (chance.cumsum(1) > random.random((number, 1))).argmax(1)
    return softmax(logits * sharpness), truth.tolist()


def test_scores_become_probabilities():
    scores, truth = answers(800, 4.0)
    found = fit_labels(labelled(truth), {"scores": scores})
    assert found.rules.temperature == pytest.approx(4.0, rel=0.15)
    assert found.rules.thresholds is None
    assert found.error_before > 0.1
    assert found.error_after < 0.05
    assert found.num_images == 800
    kept = json.loads(json.dumps(found.to_dict()))
    assert ConfidenceRules.from_dict(kept["rules"]) == found.rules


def test_a_score_of_zero_has_a_logarithm():
    scores, truth = answers(200, 40.0)
    assert (scores == 0).any()
    found = fit_labels(labelled(truth), {"scores": scores})
    assert 1 < found.rules.temperature <= 20


def test_sure_answers_are_right_as_often_as_asked():
    scores, truth = answers(4000, 2.0, seed=1)
    found = fit_labels(labelled(truth), {"scores": scores}, min_precision=0.9)
    assert found.shared == ()
    others, true = answers(20000, 2.0, seed=2)
    fitted = soften_scores(others, found.rules.temperature)
    best = fitted.argmax(1)
    sure = fitted.max(1) >= np.array(found.rules.thresholds)[best]
    right = best == np.array(true)
    assert right.mean() < 0.85
    assert right[sure].mean() > 0.9
    assert sure.mean() > 0.3


def test_a_label_with_few_answers_shares_the_threshold_of_all(caplog):
    scores, truth = answers(1000, 1.0, seed=3, classes=3)
    # Nothing is answered with the fourth label, and hardly anything is known of the third.
    scores = np.c_[scores, np.zeros((1000, 1), np.float32)]
    rare = scores.argmax(1) == 2
    rare[np.flatnonzero(rare)[:5]] = False
    chosen = {"scores": scores[~rare]}
    found = fit_labels(labelled(np.array(truth)[~rare].tolist()), chosen, min_precision=0.9)
    assert found.shared == ("cat", "dog")
    ant, bee, cat, dog = found.rules.thresholds
    assert cat >= dog
    assert len({ant, bee, dog}) == 3
    assert f"they have that of all labels together, {dog:.3f}, or a higher one: cat, dog" in (
        caplog.text
    )


def test_a_label_that_is_often_wrong_asks_for_more_than_all_together():
    # Of 40 ants half are wrong, at every score; the many bees are right.
    random = np.random.default_rng(0)
    best = np.array([0] * 40 + [1] * 400)
    score = random.uniform(0.6, 0.95, 440)
    scores = np.zeros((440, 4), np.float32)
    scores[np.arange(440), best] = score
    scores[:, 3] = 1 - score
    truth = best.copy()
    truth[:40][score[:40] < 0.8] = 3
    found = fit_labels(labelled(truth.tolist()), {"scores": scores}, min_precision=0.9)
    assert "ant" in found.shared
    ant, bee, cat, _ = found.rules.thresholds
    assert ant > cat >= bee
    fitted = soften_scores(scores, found.rules.temperature)[:40]
    assert (truth[:40] == 0)[fitted.max(1) >= ant].all()


def test_a_precision_that_nothing_proves():
    scores, truth = answers(60, 1.0)
    with pytest.raises(
        CalibrationError, match=r"No threshold proves a precision of 99\.0% on thes"
    ):
        fit_labels(labelled(truth), {"scores": scores}, min_precision=0.99)
    with pytest.raises(CalibrationError, match=r"The precision is 95, .* For 95 % give 0\.95"):
        fit_labels(labelled(truth), {"scores": scores}, min_precision=95)


def test_too_few_images():
    scores, truth = answers(49, 1.0)
    with pytest.raises(CalibrationError, match=r"There are 49 validation images, .* at least 50"):
        fit_labels(labelled(truth), {"scores": scores})


def test_labels_that_are_independent():
    random = np.random.default_rng(0)
    logits = random.normal(-1, 2, (1000, 4))
    logits[:, 3] = -9
    applies = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
    applies[:, 3] = False
    truth = [tuple(np.flatnonzero(row).tolist()) for row in applies]
    scores = (1 / (1 + np.exp(-3 * logits))).astype(np.float32)
    found = fit_labels(labelled(truth, multilabel=True), {"scores": scores})
    assert found.rules.temperature == pytest.approx(3, rel=0.15)
    assert found.error_after < found.error_before / 2
    # The best F1 of a true probability is below one half.
    assert all(0.2 < threshold < 0.5 for threshold in found.rules.thresholds[:3])
    assert found.rules.thresholds[3] == 0.5
    assert found.shared == ("dog",)
    with pytest.raises(CalibrationError, match="a model of the kind 'multilabel' has another"):
        fit_labels(labelled(truth, multilabel=True), {"scores": scores}, min_precision=0.9)


def test_boxes():
    data = SyntheticScenes(num_images=240, image_size=64)
    data.setup()
    found = BoxValidation((*data.labels, "never"), images(data))
    random = np.random.default_rng(0)
    outputs = {
        "boxes": np.zeros((60, 10, 4), np.float32),
        "labels": random.integers(0, 3, (60, 10)),
        "scores": random.uniform(0, 0.4, (60, 10)).astype(np.float32),
    }
    for row, true in enumerate(found.truth):
        number = len(true.labels)
        outputs["boxes"][row, :number] = true.corners
        outputs["labels"][row, :number] = true.labels
        outputs["scores"][row, :number] = random.uniform(0.6, 1, number)
    fitted = found.fit_confidence(outputs)
    assert fitted.rules.temperature == 1
    assert all(0.6 <= threshold < 0.8 for threshold in fitted.rules.thresholds[:3])
    assert fitted.rules.thresholds[3] == 0.3
    assert fitted.shared == ("never",)
    assert fitted.error_before is None


def test_a_model_of_forgeries_has_a_command_of_its_own():
    found = labelled([0, 1] * 30, labels=("real", "fake"))
    images = DeepfakeValidation(found.labels, found.images, by_frame=False)
    with pytest.raises(CalibrationError, match="vfm calibrate CHECKPOINT DATA"):
        images.fit_confidence({"logits": np.zeros(60)})


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_graph_gives_what_was_fitted(multilabel, temperature):
    torch.manual_seed(0)
    task = vit(multilabel=multilabel)
    task.head.prepare(task.backbone.info, LABELS)
    with torch.no_grad():
        task.head.linear.weight.normal_(0, 0.5)
    data = shapes()
    data.setup()
    source = LabeledImages.select_splits(data, ["val"])
    found = open_images(source, task.eval().preprocess, needs_geometry=task.head.needs_geometry)
    pixels = torch.from_numpy(found.inputs["pixels"])
    contract = Contract(
        task=task.kind,
        labels=LABELS,
        preprocess=task.preprocess.to_dict(),
        backbone="toy",
        license=None,
        versions={},
        rules=ConfidenceRules(temperature=temperature).to_dict(),
    )
    with torch.inference_mode():
        plain = task.answer(pixels)["scores"].numpy()
        graph = ExportedModel(contract, {"": task}).eval()(pixels)["scores"].numpy()
    np.testing.assert_allclose(
        graph, soften_scores(plain, temperature, multilabel=multilabel), atol=1e-5
    )
