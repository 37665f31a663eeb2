"""What is left of a model when photos get worse."""

import numpy as np
import pytest
from skimage import data

from vfm.audit.robustness import (
    PHOTO_CORRUPTIONS,
    corrupt_photo,
    describe_robustness,
    draw_robustness,
    find_first_break,
)

PHOTO = np.ascontiguousarray(data.astronaut()[:300, :400])


@pytest.mark.parametrize("kind", PHOTO_CORRUPTIONS)
def test_a_corruption_grows_and_keeps_the_size(kind):
    corruption = PHOTO_CORRUPTIONS[kind]
    levels = [corruption.levels[1], corruption.levels[-1]]
    weak, strong = (
        corrupt_photo(PHOTO, corruption, level, np.random.default_rng(0)) for level in levels
    )
    assert weak.shape == strong.shape == PHOTO.shape
    assert weak.dtype == np.uint8
    distance = [np.abs(each.astype(int) - PHOTO).mean() for each in (weak, strong)]
    assert 0 < distance[0] < distance[1]


def rows(*values):
    return [
        {"level": i, "text": f"level {i}", "value": v, "low": v, "high": v}
        for i, v in enumerate(values)
    ]


def test_what_breaks_first():
    curves = {"blur": rows(0.8, 0.3), "noise": rows(0.6, 0.5), "jpeg": rows(0.79, 0.78)}
    first = find_first_break(0.8, curves)
    assert (first["kind"], first["value"]) == ("noise", 0.6)
    assert find_first_break(0.8, {"jpeg": curves["jpeg"]}) is None
    assert find_first_break(None, curves) is None
    result = {
        "metric": "accuracy",
        "num_images": 9,
        "clean": rows(0.8)[0],
        "curves": curves,
        "mean_corruption_error": 0.37,
        "breaks_first": first,
    }
    text = describe_robustness(result)
    assert text.endswith("What breaks first: level 0, accuracy 0.600.")
    assert "0.370 over 3 kinds (0.200 of the 9 photos as they are)" in text
    assert "None takes a tenth" in describe_robustness(result | {"breaks_first": None})
    assert draw_robustness(result).startswith(b"\x89PNG")
