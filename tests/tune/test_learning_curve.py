"""Learning curve: a power law of the error is found again, and never rises."""

from __future__ import annotations

import numpy as np
import pytest

from vfm.tune.learning_curve import extrapolate


def test_a_power_law_is_continued() -> None:
    sizes = np.array([20.0, 40.0, 80.0])
    values = (1 - 2 * sizes**-0.5)[:, None]
    expected = extrapolate(sizes, values, np.array([100, 200]), 1e-3)
    assert expected[:, 0] == pytest.approx(1 - 2 * np.array([100.0, 200.0]) ** -0.5)


def test_more_images_never_harm_and_no_error_is_below_what_can_be_measured() -> None:
    sizes = np.array([20.0, 40.0, 80.0])
    falling, perfect = np.array([0.9, 0.8, 0.7]), np.ones(3)
    expected = extrapolate(sizes, np.stack([falling, perfect], 1), np.array([100, 200]), 0.01)
    assert expected[0, 0] == expected[1, 0]
    assert expected[:, 1] == pytest.approx([0.99, 0.99])
