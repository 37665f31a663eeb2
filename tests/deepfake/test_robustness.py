"""Robustness and null score of `vfm audit` of detectors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.faces.crop import CropSpec

from vfm.audit.detectors import (
    draw_corrupted,
    judge_units,
    list_unit_pictures,
    measure_unit_robustness,
    read_unit_values,
)
from vfm.audit.robustness import add_robustness
from vfm.audit.source import AuditError
from vfm.data.corruptions import CORRUPTIONS
from vfm.deepfake.data.data import DeepfakeData
from vfm.deepfake.data.manifest import write_manifest
from vfm.deepfake.data.record import Item
from vfm.deepfake.scoring import AuditedVideos, CorruptedDeepfakes, select_frames
from vfm.deepfake.task import DeepfakeTask
from vfm.report import Page
from vfm.tasks.predictor import TorchPredictor
from vfm.training.checkpoint import CheckpointError

SIDE = 48


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eight people: a real video of three smooth frames each, and a fake one with a fine pattern on it."""
    root = tmp_path_factory.mktemp("faces")
    pattern = 6 * ((np.indices((SIDE, SIDE)).sum(0) % 2)[..., None] - 0.5)
    random = np.random.default_rng(0)
    items = []
    for person in range(8):
        colour = random.integers(60, 180, 3)
        for label, method in (("real", ""), ("fake", "pattern")):
            for frame in range(3):
                pixels = np.full((SIDE, SIDE, 3), colour + frame) + (label == "fake") * pattern
                path = f"{label}/{person}_{frame}.png"
                (root / label).mkdir(exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(root / path)
                who = {"video": str(person), "identities": (f"p{person}",), "frame": frame}
                items.append(Item(path=path, label=label, method=method, split="test", **who))
    write_manifest(root / "manifest.csv", items)
    return root


def faces(root, **options):
    options = {"cropped": True, "crop_size": SIDE, "mode": "plain", "num_workers": 0} | options
    return DeepfakeData(root, edits=False, benign_share=0.0, **options)


def open_units(root, task, *, num_frames=8, seed=0):
    data = faces(root)
    records = select_frames(task.preprocess, task.crop, data, "test", num_frames)
    images = CorruptedDeepfakes(records, task.preprocess, crop=data.crop, seed=seed)
    path = task.source or root / "last.ckpt"
    return AuditedVideos(predictor=TorchPredictor(task), path=path, images=images, source="test")


def measure(units, *kinds, number=99, seed=0):
    return measure_unit_robustness(
        units, units.score(), ("real", "fake"), kinds, number=number, seed=seed
    )


@pytest.fixture
def task():
    """A task that takes what changes from pixel to pixel for a forgery."""
    task = DeepfakeTask(
        "vit_tiny_patch16_224",
        backbone_args={"embed_dim": 48, "depth": 1, "num_heads": 3},
        pretrained=False,
        image_size=32,
    )
    task.head.prepare(task.backbone.info, ("real", "fake"))
    task.crop = CropSpec(source="cropped", size=SIDE)

    def answer(pixels):
        steps = pixels.float().diff(dim=2).abs().mean(dim=(1, 2, 3))
        return {"logits": steps - 1}

    task.answer = answer
    task.preprocess = type(task.preprocess)(size=(SIDE, SIDE), fit="squash")
    return task.eval()


def test_figures_fall_where_the_trace_is_lost(root, task):
    units = open_units(root, task, num_frames=1)
    found = measure(units, "noise", "blur")
    assert (found["unit"], found["num_images"]) == ("videos", 16)
    weak, *_, strong = (row["value"] for row in found["curves"]["noise"])
    assert found["clean"]["value"] == found["clean"]["low"] == weak == 1
    assert strong < 0.95
    assert found["curves"]["blur"][-1]["value"] < 0.95
    assert found["breaks_first"]["value"] < 0.9
    # Its threshold of 0.5 is passed by all that is noisy.
    assert found["clean"]["rates"] == {"false_positive_rate": 0, "true_positive_rate": 1}
    assert found["curves"]["noise"][-1]["rates"]["false_positive_rate"] == 1
    page = Page("Audit", "")
    add_robustness(page, found, draw_corrupted(units, ("noise", "blur")))
    html = page.to_html()
    assert "where the false positive rate rises, it no longer holds" in html
    assert "blurred by 3 px" in html
    assert html.count("data:image/png") == 2


def test_the_crop_is_degraded_before_it_is_resized(root, task):
    task.preprocess = type(task.preprocess)(size=(32, 32), fit="squash")
    units = open_units(root, task)
    record = units.records[0]
    crop = np.array(Image.open(record.source))
    jpeg = CORRUPTIONS["jpeg"]
    expected = task.preprocess.resize(jpeg.apply(crop, 10, np.random.default_rng(0)))[0]
    np.testing.assert_array_equal(units.open(record, jpeg, 10), expected)
    np.testing.assert_array_equal(units.open(record), task.preprocess.resize(crop)[0])


def test_a_seed_reproduces(root, task):
    first, second, other = (
        open_units(root, task, seed=seed).score(CORRUPTIONS["noise"], 0.1).scores.tolist()
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_frames_of_a_video_and_videos_are_limited_and_spread(root, task):
    units = open_units(root, task, num_frames=2)
    names = [record.name for record in units.records if record.name.startswith("real/3")]
    assert names == ["real/3_0.png", "real/3_2.png"]
    scored = units.score(number=6)
    assert scored.positive.tolist().count(True) == 3
    assert len(scored.records) == 12


def test_the_threshold_is_that_of_the_operating_point(root, task, tmp_path):
    task.source = tmp_path / "last.ckpt"
    units = open_units(root, task)
    assert "No operating point lies beside" in units.score().notes[1]
    rules = Decision(threshold=0.5, temperature=2.0)
    (tmp_path / "operating_point.json").write_text(json.dumps(rules.to_dict()))
    scored = open_units(root, task).score()
    assert scored.threshold == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert len(scored.notes) == 1


def test_what_is_called_fake_is_explained_by_its_most_fake_frame(root, task):
    """The fake score is how bright a crop is: frames of a video grow brighter, and real and fake alike do."""

    def answer(pixels):
        brightness = pixels.float().mean(3)
        heatmaps = torch.nn.functional.adaptive_avg_pool2d(brightness, 4) / 255
        return {"logits": (brightness.mean((1, 2)) - 120) / 20, "heatmaps": heatmaps}

    task.answer = answer
    task.preprocess = type(task.preprocess)(size=(32, 32), fit="squash")
    units = open_units(root, task)
    scored = units.score()
    outcomes = judge_units(scored, "real", "fake")
    pictures = list(list_unit_pictures(units, scored, outcomes, 4))
    assert [each.truth for each in pictures] == ["fake", "fake", "real", "real"]
    assert [each.right for each in pictures] == [True, True, False, False]
    assert {each.name[-6:] for each in pictures} == {"_2.png"}
    for each in pictures:
        assert each.predicted == "fake"
        assert each.score > 0.5
        assert each.compute_scores(each.pixels[None])[0] == pytest.approx(each.score)
        # A class token is no mean over the places, so that there are no patch contributions.
        assert set(each.maps) == {"grad_cam", "heatmap"}
    assert pictures[2].score >= pictures[3].score


def test_unreadable_images_are_counted_and_one_label_is_refused(root, task, tmp_path):
    damaged = tmp_path / "bad.png"
    damaged.write_bytes(b"no image")
    items = [Item(path=str(damaged), label="real", video="bad", split="test")]
    path = str(root / "real" / "0_0.png")
    items.append(Item(path=path, label="real", video="0", split="test"))
    write_manifest(tmp_path / "manifest.csv", items)
    units = open_units(tmp_path, task)
    scored = units.score()
    assert (len(scored.scores), len(scored.skipped)) == (1, 1)
    with pytest.raises(AuditError, match=r"All 1 videos of test are real, so --robustness has not"):
        measure(units, "jpeg")


def test_a_video_has_the_values_of_its_first_frame(root, task):
    units = open_units(root, task)
    scored = units.score()
    values = read_unit_values(units, scored)
    assert len(values) == 16
    assert values[0]["width"] == SIDE
    # The pattern makes all fakes sharper than all reals.
    sharp = np.array([each["sharpness"] for each in values])
    assert sharp[scored.positive].min() > sharp[~scored.positive].max()


def test_trap_09_other_crops_are_refused(root, task):
    task.crop = CropSpec(source="faces")
    with pytest.raises(CheckpointError, match="not cropped as those that the model was trained on"):
        open_units(root, task)
