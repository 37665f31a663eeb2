"""The answer itself: plain values, equality, pictures."""

import dataclasses
import json

import numpy as np
import pytest
from vfm_runtime.deepfake.decision import Decision, decide
from vfm_runtime.deepfake.evidence import FrameEvidence
from vfm_runtime.deepfake.heatmap import COLORS, SheetTile, blend_heat, draw_sheet, paste_heatmap

HEAT = np.zeros((4, 4), np.float32)
HEAT[0, 0] = 1


def verdict(logit=2.0, heatmap=HEAT, **rules):
    # The crop covers columns 10 to 30 and rows 20 to 40 of the picture, doubled in size.
    frame = FrameEvidence(
        frame=0,
        time=0.0,
        logit=logit,
        distance=0.1,
        heatmap=heatmap,
        box=np.array([12, 22, 28, 38], np.float32),
        face_px=100.0,
        sharpness=50.0,
        matrix=np.array([[2.0, 0, -20], [0, 2.0, -40]]),
        size=40,
    )
    return decide([frame], 1, False, Decision(threshold=0.0, **rules))


def test_plain_values():
    values = json.loads(json.dumps(verdict().to_dict()))
    assert values["label"] == "fake"
    assert values["reason"] is None
    assert values["score"] == pytest.approx(0.8808, abs=1e-4)
    assert values["frames"] == [
        {
            "frame": 0,
            "time": 0.0,
            "logit": 2.0,
            "distance": 0.1,
            "box": [12.0, 22.0, 28.0, 38.0],
            "face_px": 100.0,
            "sharpness": 50.0,
            "score": values["score"],
        }
    ]
    unknown = json.loads(json.dumps(verdict(min_face=200.0).to_dict()))
    assert (unknown["reason"], unknown["score"]) == ("face_too_small", None)


def test_in_a_line():
    assert verdict().headline() == "fake 0.8808"
    assert verdict(min_face=200.0).headline() == "undecided (face_too_small)"
    assert verdict(max_distance=0.05).headline() == "undecided 0.8808 (unlike_training)"
    assert repr(verdict()) == "Verdict('fake', 0.881, 1 crops)"
    assert (
        repr(verdict(min_face=200.0)) == "Verdict('undecided', face_too_small, no score, 1 crops)"
    )


def test_equality_looks_at_every_number():
    assert verdict() == verdict()
    assert verdict() != verdict(2.5)
    assert verdict() != verdict(heatmap=HEAT * 0.5)
    assert verdict() != verdict(temperature=2.0)
    assert verdict() != "fake"
    with pytest.raises(TypeError, match="unhashable"):
        hash(verdict())


def test_agreement_of_verdicts():
    assert verdict().compare(verdict()) == (0.0, False, "fake", "fake")
    near = verdict().compare(verdict(2.01))
    assert 0 < near.difference < 0.01
    assert not near.changed
    other = verdict(0.001).compare(verdict(-0.001))
    assert other.changed
    assert (other.expected, other.actual) == ("fake", "real")
    assert verdict().compare(verdict(heatmap=HEAT * 0.5)).difference == 0.5
    lost = verdict().compare(verdict(min_face=200.0))
    assert lost.changed
    assert lost.actual == "undecided (face_too_small)"


def test_verdicts_of_different_crops_do_not_agree():
    none = decide([], 1, False, Decision())
    found = verdict().compare(none)
    assert found.changed
    assert (found.expected, found.actual) == ("fake, 1 crops", "undecided (no_face), 0 crops")
    bare = dataclasses.replace(verdict(), frames=())
    assert verdict().compare(bare).changed
    nan = verdict(heatmap=HEAT * np.nan)
    assert verdict().compare(nan).difference == float("inf")


def test_heat_lies_where_the_crop_lies():
    heat = paste_heatmap(np.ones((4, 4), np.float32), verdict().frames[0].matrix, 40, (60, 80))
    assert heat.shape == (60, 80)
    rows, columns = np.nonzero(heat > 0.5)
    assert abs(rows.min() - 20) <= 1
    assert abs(rows.max() - 39) <= 1
    assert abs(columns.min() - 10) <= 1
    assert abs(columns.max() - 29) <= 1
    # The upper left cell of four covers a quarter of the crop each way.
    corner = paste_heatmap(HEAT, verdict().frames[0].matrix, 40, (60, 80))
    row, column = np.unravel_index(corner.argmax(), corner.shape)
    assert 20 <= row <= 24
    assert 10 <= column <= 14


def test_heat_is_drawn_over_and_nothing_else_is_changed():
    grey = np.full((40, 40, 3), 128, np.uint8)
    drawn = blend_heat(grey, HEAT)
    assert drawn[2, 2, 0] > 180
    assert drawn[2, 2, 2] < 70
    np.testing.assert_array_equal(drawn[30:, 30:], grey[30:, 30:])
    assert (grey == 128).all()


def test_picture_of_a_verdict():
    grey = np.full((60, 80, 3), 128, np.uint8)
    drawn = verdict().draw(grey)
    assert drawn.shape[0] > 60
    assert drawn.shape[1] == 80
    assert drawn[60:].reshape(-1, 3).tolist().count([198, 40, 40]) > 100
    assert COLORS["fake"] == "#c62828"
    assert drawn[50, 70].tolist() == [128, 128, 128]
    assert drawn[24, 14, 0] > drawn[24, 14, 2] + 50


def test_sheet_of_a_video():
    red = np.zeros((10, 10, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    page = draw_sheet([SheetTile(red, None, "0.00 s"), SheetTile(red, HEAT, "0.04 s")] * 3)
    assert page.shape[1] == 4 * 328 + 4
    assert page.shape[0] > 2 * 160
    assert (page == [255, 0, 0]).all(-1).mean() > 0.3


def test_drawing_a_video_on_a_picture():
    clip = dataclasses.replace(verdict(), is_video=True, num_frames=8)
    with pytest.raises(
        ValueError, match="verdict is of a video, and a ndarray is given to draw on"
    ):
        clip.draw(np.zeros((60, 80, 3), np.uint8))
