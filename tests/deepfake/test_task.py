"""Real or fake, from generated faces to a verdict."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import av
import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.deepfake.verdict import Verdict
from vfm_runtime.media.image import open_image

import vfm
from tests.deepfake.data.faces import write_faces
from tests.tasks.tiny import require_report, shapes, trainer
from vfm.deepfake.data.base import CROP_FILE
from vfm.deepfake.data.data import DeepfakeData
from vfm.deepfake.data.synthetic import METHODS, SyntheticDeepfakes
from vfm.deepfake.head import DeepfakeHead
from vfm.deepfake.loss import DeepfakeLoss
from vfm.deepfake.operating_point import OPERATING_POINT
from vfm.deepfake.task import DeepfakeTask
from vfm.tasks import BaseTask, Optim
from vfm.tasks.results import SplitPredictions
from vfm.training.checkpoint import CheckpointError

SIDE = 48
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}


def task(**changes: Any) -> DeepfakeTask:
    settings: dict[str, Any] = {
        "backbone": "vit_tiny_patch16_224",
        "pretrained": False,
        "image_size": SIDE,
        "backbone_args": VIT,
        "adapt": "full",
        "head": DeepfakeHead(bank_size=16),
        "optim": Optim(lr=1e-3),
    }
    return DeepfakeTask(**(settings | changes))


def drawn(**changes: Any) -> SyntheticDeepfakes:
    settings: dict[str, Any] = {
        "num_identities": 8,
        "num_frames": 1,
        "image_size": SIDE,
        "batch_size": 8,
    }
    return SyntheticDeepfakes(**(settings | changes))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    write_faces(root, num_identities=8, num_frames=2, size=SIDE)
    return root


def listed(files: Path, **changes: Any) -> DeepfakeData:
    settings: dict[str, Any] = {
        "val_fraction": 0.25,
        "test_fraction": 0.25,
        "batch_size": 8,
        "num_workers": 0,
    }
    return DeepfakeData(files, **(settings | changes))


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    L.seed_everything(0)
    made = trainer(root, max_epochs=2)
    made.fit(task(), datamodule=listed(files))
    return root


@pytest.fixture
def best(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


@pytest.fixture
def own(best: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint in a folder of its own."""
    copy = tmp_path / "copy" / "best.ckpt"
    copy.parent.mkdir()
    copy.write_bytes(best.read_bytes())
    return copy


def clip(path: Path, frames: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 10**6
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_checkpoint_rebuilds_the_task(best: Path) -> None:
    again, other = BaseTask.load(best), BaseTask.load(best)
    assert isinstance(again, DeepfakeTask)
    assert again.labels == ("real", "fake")
    assert again.crop == CropSpec(source="cropped", size=SIDE)
    assert again.methods == tuple(sorted(METHODS))
    assert again.head.bank_size == 16
    pixels = torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8)
    with torch.no_grad():
        first, second = (loaded.answer(pixels) for loaded in (again, other))
    assert first["heatmaps"].shape == (2, 6, 6)
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Noise lies apart from the faces of the training, whose features the checkpoint holds.
    assert first["distances"].min() > 0.01


def test_results_and_their_page(best: Path, files: Path) -> None:
    made = trainer(best.parents[1])
    (logged,) = made.test(BaseTask.load(best), datamodule=listed(files), verbose=False)
    results = json.loads((best.parent / "results.json").read_text())["test"]
    assert results["video_auc"]["value"] == pytest.approx(logged["test/video_auc"])
    assert results["frame_auc"]["value"] == pytest.approx(logged["test/frame_auc"])
    assert results["macro_auc"]["value"] == pytest.approx(logged["test/macro_auc"])
    assert results["num_videos"] * 2 == results["num_samples"]
    assert {row["method"]: row["seen"] for row in results["per_method"]} == dict.fromkeys(
        METHODS, True
    )
    assert (best.parent / "report_test.html").is_file()


def test_fakes_blended_in_training_are_methods_unseen(tmp_path: Path) -> None:
    learning = task()
    trainer(tmp_path, fast_dev_run=True).fit(learning, datamodule=drawn(mode="sbi"))
    assert learning.methods == ()


def test_predictions_as_rows(own: Path, files: Path, tmp_path: Path) -> None:
    loaded = BaseTask.load(own)
    trainer(tmp_path).predict(loaded, datamodule=listed(files))
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert len(rows) > 20
    for row in rows:
        assert row["label"] == ("fake" if float(row["score"]) > 0.5 else "real")
    lowest = min(float(row["score"]) for row in rows)
    write_point(own.parent, temperature=1.0, threshold=float(np.log(lowest / (1 - lowest))) - 1e-3)
    trainer(tmp_path).predict(BaseTask.load(own), datamodule=listed(files))
    again = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert {row["label"] for row in again} == {"fake"}


def test_python_gives_a_verdict_on_an_image(best: Path, files: Path) -> None:
    model = vfm.load(best, device="cpu")
    path = sorted(files.rglob("crops/**/*.png"))[0]
    answer = model.predict(path)
    assert isinstance(answer, Verdict)
    with torch.no_grad():
        pixels = torch.from_numpy(open_image(path).copy())[None]
        logit = float(model.task(pixels)["logits"])
    assert answer.logit == pytest.approx(logit, abs=1e-5)
    assert answer.frames[0].heatmap is not None
    assert answer.frames[0].heatmap.shape == (6, 6)


def test_the_score_of_a_video_is_that_of_its_mean_logit(
    best: Path, files: Path, tmp_path: Path
) -> None:
    model = vfm.load(best, device="cpu")
    images = [open_image(path) for path in sorted(files.rglob("crops/**/*.png"))[:5]]
    answer = model.predict(clip(tmp_path / "x.mp4", images))
    assert answer.is_video
    assert len(answer.frames) == 5
    assert answer.logit == pytest.approx(np.mean([frame.logit for frame in answer.frames]))
    assert np.std([frame.logit for frame in answer.frames]) > 0


def test_norm_layers_alone_learn_by_default() -> None:
    made = DeepfakeTask(
        "vit_tiny_patch16_224", pretrained=False, image_size=SIDE, backbone_args=VIT
    )
    learning = {name for name, p in made.backbone.named_parameters() if p.requires_grad}
    norms = {
        f"{name}.{kind}"
        for name, module in made.backbone.named_modules()
        if isinstance(module, nn.LayerNorm)
        for kind in ("weight", "bias")
    }
    assert learning == norms
    assert made.optim.lr == 3e-4
    assert made.optim.weight_decay == 0


def test_parts_of_the_loss_are_logged_as_means(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    loss = DeepfakeLoss(uniformity=0.5, alignment=0.1, mask=1.0, mil=0.1)
    made.fit(task(loss=loss), datamodule=drawn())
    logged = {name: float(value) for name, value in made.callback_metrics.items()}
    parts = [f"train/{name}" for name in ("classes", "uniformity", "alignment", "mask", "mil")]
    assert logged["train/loss_epoch"] == pytest.approx(
        sum(logged[name] for name in parts), abs=1e-5
    )
    assert logged["train/classes"] == pytest.approx(np.log(2), abs=0.1)


def test_a_mask_that_is_no_number_is_reported_and_replayed(tmp_path: Path) -> None:
    def spoil(batch: Any, position: int) -> None:
        batch["target"].mask[position, 3, 3] = float("nan")

    require_report(tmp_path, task(), drawn(num_identities=24), spoil)


def test_a_resumed_training_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """Also the bank, which is of the last batches."""
    ends = []
    for name, stops in (("whole", [2]), ("halves", [1, 2])):
        checkpoint = None
        for epochs in stops:
            L.seed_everything(3)
            made = trainer(tmp_path / name, max_epochs=epochs, limit_val_batches=1)
            # As long in both, or the learning rate would fall earlier.
            learning = task(optim=Optim(lr=1e-3, warmup_ratio=0.0, min_lr_ratio=1.0))
            made.fit(learning, datamodule=drawn(), ckpt_path=checkpoint)
            checkpoint = tmp_path / name / "checkpoints" / "last.ckpt"
        ends.append(learning.state_dict())
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], msg=key)
    assert ends[0]["head.memory_bank"].abs().sum(1).all()


def test_averaged_weights_keep_a_bank_of_unit_features(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_epochs=2)
    made.fit(task(optim=Optim(lr=1e-3, ema=0.9)), datamodule=drawn())
    head = BaseTask.load(tmp_path / "checkpoints" / "last.ckpt").head
    lengths = (head.memory_bank.double() / 2**24).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(16, dtype=torch.float64), atol=1e-5, rtol=0)


def write_point(folder: Path, **changes: Any) -> None:
    decision = {**Decision().to_dict(), **changes}
    (folder / OPERATING_POINT).write_text(json.dumps(decision), encoding="utf-8")


def test_the_operating_point_beside_the_checkpoint_decides(own: Path, files: Path) -> None:
    assert BaseTask.load(own).decision == Decision()
    path = sorted(files.rglob("crops/**/*.png"))[0]
    logit = vfm.load(own, device="cpu").predict(path).logit
    for offset, label in ((0.1, "real"), (-0.1, "fake")):
        write_point(
            own.parent, temperature=2.0, threshold=logit / 2 + offset, fpr=0.01, num_reals=300
        )
        answer = vfm.load(own, device="cpu").predict(path)
        assert answer.label == label
        assert answer.score == pytest.approx(1 / (1 + np.exp(-logit / 2)))
        assert answer.calibrated


def test_a_damaged_operating_point_is_refused(own: Path) -> None:
    (own.parent / OPERATING_POINT).write_text('{"threshold": 1}')
    with pytest.raises(
        CheckpointError, match=r"operating_point\.json is no operating point: .*vfm calibrate"
    ):
        vfm.load(own, device="cpu")


def test_an_untrained_task_judges_nothing() -> None:
    with pytest.raises(CheckpointError, match="DeepfakeTask has not been trained"):
        task().define_rules()


@pytest.fixture
def larger(files: Path, tmp_path: Path) -> Path:
    """The same images, of which `crop.json` says another margin."""
    spec = {**CropSpec(source="cropped", size=SIDE).to_dict(), "margin": 1.5}
    root = tmp_path / "larger"
    root.mkdir()
    (root / "manifest.csv").write_text((files / "manifest.csv").read_text())
    (root / CROP_FILE).write_text(json.dumps(spec))
    return root


@pytest.mark.parametrize("stage", ["test", "validate", "fit"])
@pytest.mark.parametrize("loaded", [True, False])
def test_trap_09_images_cropped_otherwise_are_refused(
    best: Path, files: Path, larger: Path, tmp_path: Path, stage: str, loaded: bool
) -> None:
    (larger / "crops").symlink_to(files / "crops")
    made = trainer(tmp_path, max_epochs=3)
    model, checkpoint = (BaseTask.load(best), None) if loaded else (task(), best)
    with pytest.raises(
        CheckpointError,
        match=r"not cropped as those that the model was trained on: margin 1\.5 \(the model's: 1\.3\)",
    ):
        getattr(made, stage)(model, datamodule=listed(larger), ckpt_path=checkpoint)


def test_trap_08_inverted_labels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn(num_identities=16)
    data.setup("fit")
    made = task()
    monkeypatch.setattr(made, "_require_data", lambda: data)
    labels = np.array([record.label for record in data.records["val"]])
    position = np.arange(len(labels))

    def predict(logits: np.ndarray, position: np.ndarray = position) -> SplitPredictions:
        rows = {"logits": list(logits), "distances": [np.float32(0)] * len(logits)}
        return SplitPredictions(position, rows, {"loss": 0.0})

    right = labels.astype(np.float32)
    assert made.compute_metrics("val", predict(right))["video_auc"] == 1.0
    with pytest.warns(UserWarning, match=r"AUC on val is 0\.000.*inverted \(fake is 1\)"):
        figures = made.compute_metrics("val", predict(-right))
    assert figures["macro_auc"] == 0.0
    reals = predict(right[labels == 0], position[labels == 0])
    assert np.isnan(made.compute_metrics("val", reals)["video_auc"])


def test_data_that_does_not_know_its_videos(tmp_path: Path) -> None:
    made = trainer(tmp_path, fast_dev_run=True)
    with pytest.raises(
        TypeError,
        match=r"DeepfakeTask learns from real and fake images, but SyntheticData .*--data DeepfakeData",
    ):
        made.fit(task(), datamodule=shapes())


@pytest.mark.slow
def test_blends_are_found_and_shown(tmp_path: Path) -> None:
    """Trained on blends of real faces alone: fakes of new people stand out, and heat lies where they were forged."""
    L.seed_everything(0)
    data = drawn(
        num_identities=128,
        num_frames=4,
        image_size=64,
        mode="sbi",
        batch_size=32,
        benign_share=0.0,
    )
    made = trainer(tmp_path, max_epochs=20, check_val_every_n_epoch=20)
    learning = task(
        backbone="test_efficientnet",
        backbone_args={"output_stride": 8},
        image_size=64,
        adapt="full",
        optim=Optim(lr=4e-3, weight_decay=0.0),
        loss=DeepfakeLoss(uniformity=0, alignment=0, mask=0.5),
    )
    made.fit(learning, datamodule=data)
    assert float(made.callback_metrics["val/video_auc"]) > 0.7
    inside, outside = [], []
    with torch.no_grad():
        for batch in data.val_dataloader():
            heat = learning.eval().answer(batch["image"])["heatmaps"]
            share = nn.functional.adaptive_avg_pool2d(batch["target"].mask, heat.shape[1:])
            deepfakes = (batch["target"].label == 1)[:, None, None]
            inside += heat[deepfakes & (share > 0.9)].tolist()
            outside += heat[deepfakes & (share < 0.1)].tolist()
    assert np.mean(inside) > np.mean(outside) + 0.1
