"""`vfm audit --robustness`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.faces.crop import CropSpec

from vfm.cli.command import run
from vfm.data.corruptions import CorruptionLevel, list_levels
from vfm.deepfake.data.data import DeepfakeData
from vfm.deepfake.data.manifest import write_manifest
from vfm.deepfake.data.record import DeepfakeDataError, Item
from vfm.deepfake.data.synthetic import SyntheticDeepfakes
from vfm.deepfake.robustness.command import audit, open_audited_data
from vfm.deepfake.robustness.page import build_robustness_page, format_robustness
from vfm.deepfake.robustness.results import CorruptedDeepfakes, measure_robustness, select_frames
from vfm.deepfake.task import DeepfakeTask
from vfm.tasks import ClassificationTask
from vfm.tasks.checkpoint import Checkpoint
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

    def answer(pixels):
        steps = pixels.float().diff(dim=2).abs().mean(dim=(1, 2, 3))
        return {"logits": steps - 1}

    task.answer = answer
    task.preprocess = type(task.preprocess)(size=(SIDE, SIDE), fit="squash")
    return task.eval()


def test_figures_fall_where_the_trace_is_lost(root, task):
    levels = [
        CorruptionLevel("noise", 0.01),
        CorruptionLevel("noise", 0.2),
        CorruptionLevel("blur", 3),
    ]
    found = measure_robustness(task, faces(root), levels)
    assert (found.num_videos, found.num_images, found.num_skipped) == (16, 48, 0)
    weak, strong, blurred = (point.video_auc["value"] for point in found.points)
    assert found.clean.video_auc["value"] == weak == 1
    assert strong < 0.95
    assert blurred < 0.95
    assert found.worst.video_auc["value"] == min(strong, blurred)
    assert found.mean_auc["noise"] == pytest.approx((weak + strong) / 2)
    assert found.clean.video_auc["low"] == 1


def test_the_crop_is_degraded_before_it_is_resized(root, task):
    task.preprocess = type(task.preprocess)(size=(32, 32), fit="squash")
    data = faces(root)
    records = select_frames(task, data, "test", 1)
    jpeg = CorruptionLevel("jpeg", 10)
    images = CorruptedDeepfakes(records, task.preprocess, crop=data.crop, corruption=jpeg)
    sample = images[0]
    crop = np.array(Image.open(records[0].source))
    expected = task.preprocess.resize(jpeg.apply(crop, np.random.default_rng(0)))[0]
    np.testing.assert_array_equal(sample.image, expected)
    plain = replace(images, corruption=None)[0]
    np.testing.assert_array_equal(plain.image, task.preprocess.resize(crop)[0])


def test_a_seed_reproduces(root, task):
    levels = [CorruptionLevel("noise", 0.1)]
    first, second, other = (
        measure_robustness(task, faces(root), levels, seed=seed).points for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_frames_of_a_video_are_limited_and_spread(root, task):
    records = select_frames(task, faces(root), "test", 2)
    names = [record.name for record in records if record.name.startswith("real/3")]
    assert names == ["real/3_0.png", "real/3_2.png"]
    found = measure_robustness(task, faces(root), [], num_frames=1)
    assert (found.num_videos, found.num_images) == (16, 16)


def test_false_alarms_at_the_threshold_of_the_operating_point(root, task, tmp_path):
    task.source = tmp_path / "last.ckpt"
    rules = Decision(threshold=0.5, temperature=2.0)
    (tmp_path / "operating_point.json").write_text(json.dumps(rules.to_dict()))
    found = measure_robustness(task, faces(root), [CorruptionLevel("noise", 0.2)])
    assert (found.clean.fpr, found.clean.tpr) == (0, 1)
    assert (found.points[0].fpr, found.points[0].tpr) == (1, 1)
    assert "FPR" in format_robustness(found)
    assert "the threshold no longer holds" in build_robustness_page(found).to_html()


def test_no_operating_point_gives_no_rates(root, task):
    found = measure_robustness(task, faces(root), [CorruptionLevel("jpeg", 40)])
    assert found.clean.fpr is None
    assert "FPR" not in format_robustness(found)


def test_unreadable_images_are_counted(root, task, tmp_path):
    damaged = tmp_path / "bad.png"
    damaged.write_bytes(b"no image")
    items = [Item(path=str(damaged), label="real", video="bad", split="test")]
    for label, method in (("real", ""), ("fake", "pattern")):
        path = str(root / label / "0_0.png")
        items.append(Item(path=path, label=label, method=method, video="0", split="test"))
    write_manifest(tmp_path / "manifest.csv", items)
    with pytest.warns(UserWarning, match="1 images could not be read and were left out"):
        found = measure_robustness(task, faces(tmp_path), [CorruptionLevel("jpeg", 40)])
    assert (found.num_images, found.num_skipped) == (2, 1)


def test_one_label_is_refused(root, task, tmp_path):
    path = str(root / "real" / "0_0.png")
    write_manifest(
        tmp_path / "manifest.csv", [Item(path=path, label="real", video="0", split="test")]
    )
    with pytest.raises(
        DeepfakeDataError, match="All 1 images of test are real: there is nothing to tell"
    ):
        measure_robustness(task, faces(tmp_path), [])


def test_trap_09_other_crops_are_refused(root, task):
    task.crop = CropSpec(source="faces")
    with pytest.raises(CheckpointError, match="not cropped as those that the model was trained on"):
        measure_robustness(task, faces(root), [])


# The command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a training of one step on drawn faces."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    data = SyntheticDeepfakes(num_identities=8, num_frames=2, image_size=SIDE, batch_size=8)
    task = DeepfakeTask(
        "vit_tiny_patch16_224",
        backbone_args={"embed_dim": 48, "depth": 1, "num_heads": 3},
        pretrained=False,
        image_size=32,
    )
    trainer = Trainer(
        max_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(task, data)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def test_command_on_the_data_of_the_training(checkpoint, tmp_path, capsys):
    words = [str(checkpoint), "--robustness", "--kinds", "jpeg, h264", "--device", "cpu"]
    run("audit", audit, [*words, "-o", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "JPEG quality 10" in printed
    assert "H.264 CRF 40" in printed
    assert "Worst: " in printed
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert [point["level"] for point in found["points"]] == [
        100,
        80,
        60,
        40,
        20,
        10,
        23,
        28,
        35,
        40,
    ]
    assert set(found["mean_video_auc"]) == {"jpeg", "h264"}
    assert 0 <= found["clean"]["video_auc"]["value"] <= 1
    page = (tmp_path / "robustness.html").read_text()
    assert "One fake at every level" in page
    assert page.count("data:image/png") == 2


def test_data_of_another_crop_is_refused_by_the_command(checkpoint, root):
    words = [str(checkpoint), str(root), "--robustness", "--cropped"]
    with pytest.raises(CheckpointError, match=r"size 256 .the model's: 48."):
        run("audit", audit, words)


def test_data_of_the_command_are_never_changed(checkpoint, root):
    opened = Checkpoint.open(checkpoint)
    own = open_audited_data(opened, None)
    assert isinstance(own, SyntheticDeepfakes)
    other = open_audited_data(opened, root)
    listed = open_audited_data(opened, root / "manifest.csv", cropped=True)
    for data in (own, other, listed):
        assert data.changes == (False, 0.0)
    assert (listed.root, listed.manifest) == (root, root / "manifest.csv")


def test_errors_of_the_command(checkpoint, tmp_path):
    with pytest.raises(
        DeepfakeDataError, match=r"Nothing to audit was named\. Choices: --robustness"
    ):
        audit(checkpoint)
    with pytest.raises(ValueError, match="no corruption 'fog'"):
        audit(checkpoint, robustness=True, kinds="fog")
    other = ClassificationTask("test_vit", pretrained=False)
    other.head.prepare(other.backbone.info, ("ant", "bee"))
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(other)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(
        DeepfakeDataError, match="is a ClassificationTask, which does not tell real from"
    ):
        audit(tmp_path / "other.ckpt", robustness=True)


def test_every_kind_has_a_level():
    assert {each.kind for each in list_levels()} == {
        "jpeg",
        "blur",
        "resize",
        "noise",
        "h264",
    }
