"""What is left of a model when photos get worse."""

import numpy as np
import pytest
from skimage import data
from vfm_runtime.errors import OptionError

from vfm.audit.robustness import (
    COMMON,
    PHOTO_CORRUPTIONS,
    choose_kinds,
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
    # The first two strengths of the published elastic transform move the picture most.
    assert 0 < distance[0] < distance[1] or kind == "elastic_transform"
    again = corrupt_photo(PHOTO, corruption, levels[-1], np.random.default_rng(0))
    np.testing.assert_array_equal(strong, again)
    thin = corrupt_photo(PHOTO[:9, :40], corruption, levels[-1], np.random.default_rng(0))
    assert thin.shape == (9, 40, 3)


def test_the_15_have_5_strengths_and_boxes_take_none_that_move_them():
    assert len(COMMON) == 15
    assert all(len(PHOTO_CORRUPTIONS[kind].levels) == 5 for kind in PHOTO_CORRUPTIONS)
    assert choose_kinds("fog, crop") == ["fog", "crop"]
    assert set(choose_kinds("")) - set(choose_kinds("", locates=True)) == {
        "elastic_transform",
        "crop",
        "rotation",
    }
    with pytest.raises(OptionError, match="names 'crop', which moves what is in the picture"):
        choose_kinds("crop", locates=True)
    with pytest.raises(OptionError, match=r"no corruption 'rain' \(--kinds\). Choices: gaussian_"):
        choose_kinds("rain")


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
        "unit": "photos",
        "clean": rows(0.8)[0],
        "curves": curves,
        "mean_corruption_error": 0.37,
        "averaged": ["fog", "snow", "frost"],
        "breaks_first": first,
    }
    text = describe_robustness(result)
    assert text.endswith("What breaks first: level 0, accuracy 0.600.")
    assert "0.370 over 3 kinds (0.200 of the 9 photos as they are)" in text
    assert "None takes a tenth" in describe_robustness(result | {"breaks_first": None})
    fog = result | {"curves": {"fog": rows(0.8, 0.3)}, "families": {"weather": ["fog"]}}
    assert draw_robustness(fog, "weather").startswith(b"\x89PNG")
