"""Null score: labels told from what is not content."""

import io

import numpy as np
import pytest
from PIL import Image

from vfm.audit.null_score import NULL_FEATURES, measure_null_scores, read_null_values


def encode(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def draw_rows(num=60, *, quality=lambda label: 80, frame=lambda label: 90):
    """Rows of noise of three classes, with a quality and a frame that may depend on the class."""
    random = np.random.default_rng(0)
    rows, labels = [], []
    for index in range(num):
        label = index % 3
        pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        pixels[:2] = pixels[-2:] = frame(label)
        rows.append(read_null_values(encode(pixels, quality=quality(label)), pixels))
        labels.append(label)
    return rows, np.array(labels)


def test_each_part_gives_away_what_it_holds():
    scores = measure_null_scores(*draw_rows(quality=lambda label: 60 + 15 * label))
    assert scores["metadata"].auroc.value > 0.95
    assert scores["metadata"].is_warning
    assert scores["metadata"].accuracy.low > scores["metadata"].majority == pytest.approx(1 / 3)
    assert not scores["border"].is_warning
    scores = measure_null_scores(*draw_rows(frame=lambda label: 90 + 6 * label))
    assert scores["border"].is_warning
    assert scores["all"].to_dict()["warning"] is True
    assert not scores["metadata"].auroc.low > 0.6


def test_where_nothing_tells_labels_apart_the_interval_holds_chance():
    scores = measure_null_scores(*draw_rows(90))
    assert scores["all"].auroc.low < 0.5 < scores["all"].auroc.high + 0.05
    assert not scores["all"].is_warning


def test_images_of_one_key_are_never_on_both_sides():
    """Values that name the key tell its label among images of the same key, and of no other."""
    random = np.random.default_rng(1)
    keys = [f"k{index // 5}" for index in range(150)]
    labels = random.integers(0, 2, 30)[np.arange(150) // 5]
    rows = [{"width": float(ord(k[-1])) * 31 % 17, "file_format": k} for k in keys]
    apart = measure_null_scores(rows, labels)["all"]
    together = measure_null_scores(rows, labels, keys=keys)["all"]
    assert apart.auroc.value > 0.9
    assert together.auroc.value < 0.75
    assert together.auroc.high - together.auroc.low > apart.auroc.high - apart.auroc.low


def test_several_labels_an_image_have_no_accuracy():
    rows, labels = draw_rows(quality=lambda label: 60 + 15 * label)
    target = np.stack([labels == 0, labels != 1, np.ones(60)], axis=1).astype(int)
    scores = measure_null_scores(rows, target)
    assert scores["metadata"].auroc.value > 0.9
    assert scores["metadata"].accuracy is None


def test_too_few_images_say_nothing():
    rows, labels = draw_rows(9)
    assert measure_null_scores(rows, labels) == {}


def test_an_array_has_no_metadata_but_its_size():
    values = read_null_values(None, np.full((20, 30, 3), 7, np.uint8))
    assert (values["width"], values["height"]) == (30, 20)
    assert values["border_left_green"] == 7
    assert values["sharpness"] == 0
    assert "file_format" not in values
    assert set(NULL_FEATURES["look"] + NULL_FEATURES["border"]) <= set(values)
