"""A detector of small objects with tiles: whole photos by torch, by `vfm test`, by the bundle and by the server."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import vfm_runtime
from fastapi.testclient import TestClient
from PIL import Image
from vfm_runtime.errors import MismatchError
from vfm_runtime.server.app import create_app
from vfm_runtime.server.settings import Settings
from vfm_runtime.tasks.tiling import Tiling

import vfm
from tests.data.box_writing import Drawn
from tests.data.boxes_written import write
from tests.tasks.test_detection import PLAIN, task
from tests.tasks.tiny import stored, trainer
from vfm.bundle.errors import ExportError
from vfm.bundle.export import export
from vfm.data import DetectionData
from vfm.data.detection.tiles import cut_record, group_tiles
from vfm.models.heads import DetrHead
from vfm.tasks import BaseTask, DetectionTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.detection.results import join_boxes, limit_boxes, warn_of_crowds

NAMES = ["class_0", "class_1", "class_2"]


def draw_photo(name: str, height: int, width: int, seed: int) -> Drawn:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 40, (height, width, 3), dtype=np.uint8)
    corners, labels = [], []
    for _ in range(12):
        x, y = draw.integers(0, [width - 12, height - 12])
        label = int(draw.integers(3))
        pixels[y : y + 10, x : x + 10, label] = 250
        corners.append([x, y, x + 10, y + 10])
        labels.append(NAMES[label])
    return Drawn(name, pixels, np.array(corners, np.float32), labels)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of small squares in COCO's format, with ids of their own for the classes."""
    sizes = {"train": [(150, 200), (64, 64)], "val": [(150, 130), (60, 60)], "test": [(200, 150)]}
    splits = {
        split: [draw_photo(f"{split}_{n}.png", *size, seed=n) for n, size in enumerate(shapes)]
        for split, shapes in sizes.items()
    }
    root = write(tmp_path_factory.mktemp("photos"), "coco", splits)
    for path in root.rglob("*.json"):
        content = json.loads(path.read_text())
        for entry in content["categories"]:
            entry["id"] *= 10
        for entry in content["annotations"]:
            entry["category_id"] *= 10
        path.write_text(json.dumps(content))
    return root


def read(photos: Path, **changes: Any) -> DetectionData:
    options = {"batch_size": 4, "num_workers": 0, "augment": PLAIN}
    return DetectionData(photos, **(options | changes))


@pytest.fixture(scope="module")
def best(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trainer(root, max_epochs=2).fit(task(), datamodule=read(photos, tile=64, tile_overlap=0.25))
    return root / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def bundle(best: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "b"
    return export(best, images=photos, out=out, num_images=5, calibrate=False)


@pytest.mark.slow
def test_tiles_travel_with_the_model(best: Path, photos: Path, bundle: Path) -> None:
    tiling = Tiling(64, 0.25)
    model = vfm.load(best, device="cpu")
    runtime = vfm_runtime.load(bundle, device="cpu")
    assert model.task_type.tiling == runtime.contract.tiling == tiling
    assert "tiles" not in runtime.contract.preprocess
    path = next(photos.rglob("test_0.png"))
    for one in (model, runtime):
        rows = one.predict(path).to_coco(5)
        assert {row["category_id"] for row in rows} <= {10, 20, 30}
    assert "cut into tiles of 64" in (bundle / "card.md").read_text()
    for path in sorted(photos.rglob("*.png")):
        expected, actual = model.predict(path), runtime.predict(path)
        assert not expected.compare(actual).changed
    graph = onnx.load(bundle / "model.onnx").graph
    assert "GridSample" not in {node.op_type for node in graph.node}
    # Golden images of several tiles.
    assert all(replay.passed for replay in vfm_runtime.bundle.golden.replay(runtime))
    sizes = [Image.open(path).size for path in (bundle / "golden").glob("*.png")]
    assert (112, 64) in sizes


def join(learned: DetectionTask, predictions: Any) -> Any:
    records = learned._list_records("test", predictions)
    return join_boxes(records, predictions.rows, learned.columns.tolist())


def test_whole_photos_are_tested_as_they_are_predicted(
    best: Path, photos: Path, bundle: Path, tmp_path: Path
) -> None:
    # The data says nothing of tiles: they are the model's.
    for tile in (None, 64):
        data = read(photos, tile=tile, tile_overlap=0.25)
        learned = task()
        trainer(tmp_path).test(learned, datamodule=data, ckpt_path=best, verbose=False)
        predictions = learned.evaluated
        assert predictions is not None
        records, truth, detections = join(learned, predictions)
        assert [record.name.rpartition("/")[2] for record in records] == ["test_0.png"]
        assert len(truth[0].labels) == 12
        runtime = vfm_runtime.load(bundle, device="cpu")
        prediction = runtime.predict(records[0].source)
        np.testing.assert_allclose(detections[0].corners, prediction.boxes, atol=1e-2)
        np.testing.assert_allclose(detections[0].scores, prediction.scores, atol=1e-4)
        results = json.loads((best.parent / "results.json").read_text())["test"]
        assert (results["num_samples"], results["num_boxes"]) == (1, 12)
        assert (best.parent / "report_test.html").is_file()
    # A limit of batches leaves tiles out, and their objects with them.
    limited = task()
    cut = trainer(tmp_path, limit_test_batches=1)
    cut.test(limited, datamodule=read(photos), ckpt_path=best, verbose=False)
    assert limited.evaluated is not None
    _, truth, _ = join(limited, limited.evaluated)
    assert 0 < truth[0].ignored.sum() < 12


def test_predictions_are_of_photos(best: Path, photos: Path, tmp_path: Path, bundle: Path) -> None:
    path = photos / "broken.png"
    path.write_bytes(next(photos.rglob("train_0.png")).read_bytes()[:2000])
    try:
        trainer(tmp_path).predict(task(), datamodule=read(photos), ckpt_path=best)
    finally:
        path.unlink()
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {row["path"].rpartition("/")[2] for row in rows}
    assert names == {p.name for p in photos.rglob("*.png")} | {"broken.png"}
    assert sum(row["path"] == "broken.png" for row in rows) == 1
    wide = next(photos.rglob("train_0.png"))
    scores = vfm_runtime.load(bundle, device="cpu").predict(wide).scores
    counted = [row for row in rows if row["path"].endswith("train_0.png")]
    assert len(counted) == (scores >= 0.01).sum()


def test_the_server_answers_as_the_bundle(bundle: Path, photos: Path) -> None:
    path = next(photos.rglob("test_0.png"))
    expected = vfm_runtime.load(bundle, device="cpu").predict(path)
    settings = Settings(bundles=(str(bundle),), device="cpu", num_threads=1)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        url, headers = "/predict?threshold=0", {"Content-Type": "image/png"}
        boxes = client.post(url, content=path.read_bytes(), headers=headers).json()["answer"][
            "boxes"
        ]
    np.testing.assert_allclose([box["box"] for box in boxes], expected.boxes, atol=1e-2)


def test_validation_takes_whole_photos(best: Path) -> None:
    checkpoint = Checkpoint.open(best)
    images = checkpoint.open_validation()
    assert len(images.truth) == 2
    assert images.num_images > 2
    outputs = images.collect_outputs(vfm.tasks.predictor.TorchPredictor(checkpoint.task).run)
    assert len(images.select_boxes(outputs)) == 2
    assert 0 <= images.measure(outputs) <= 1
    # All tiles of a photo, or none.
    limited = checkpoint.split("train").limit(5)
    assert [len(indices) for _, indices in group_tiles(limited.records)] == [12]


def test_earlier_checkpoints_get_the_tiles_of_their_data(best: Path, tmp_path: Path) -> None:
    content = stored(best)
    del content["vfm"]["preprocess"]["tiles"]
    torch.save(content, tmp_path / "old.ckpt")
    assert BaseTask.load(tmp_path / "old.ckpt").preprocess.tiles == Tiling(64, 0.25)


def test_other_tiles_than_the_models(best: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(vfm_runtime.errors.OptionError, match=r"Tiles of 50 pixels .* Leave"):
        trainer(tmp_path).test(task(), datamodule=read(photos, tile=50), ckpt_path=best)
    plain = task()
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(plain, datamodule=read(photos))
    whole = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(MismatchError, match=r"Tiles of 64 pixels are asked for, .* without"):
        trainer(tmp_path).test(task(), datamodule=read(photos, tile=64), ckpt_path=whole)
    # A new training may have others.
    again = BaseTask.load(best)
    options = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
    trainer(tmp_path, **options).fit(again, datamodule=read(photos, tile=50))
    assert again.preprocess.tiles == Tiling(50, 0.2)


def test_one_file_takes_no_tiles(best: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--one_file is a graph that takes whole images"):
        export(best, images=photos, out=tmp_path / "b", num_images=5, one_file=True)


def test_more_objects_than_can_be_found_or_counted_are_said(photos: Path, tmp_path: Path) -> None:
    few = task(head=DetrHead(num_queries=3, num_groups=1, num_layers=1))
    options = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
    text = r"images or tiles show more objects than the 3 that the head can find in one, such as .* 12\. .*queries 12"
    with pytest.warns(UserWarning, match=text):
        trainer(tmp_path, **options).fit(few, datamodule=read(photos))
    data = read(photos)
    data.setup("test")
    record = data.records["test"][0]
    boxes = record.objects
    assert boxes is not None
    crowd = replace(
        record,
        label=(1,) * 150,
        objects=boxes._replace(
            corners=np.tile(boxes.corners[:1], (150, 1)), ignored=np.zeros(150, bool), areas=None
        ),
    )
    with pytest.warns(UserWarning, match=r"1 images have more than 100 objects .* with 150: AP"):
        warn_of_crowds([crowd])
    tiles = cut_record(crowd, crowd.objects, Tiling(64))  # type: ignore[arg-type]
    assert limit_boxes(tiles) == 100 * len(tiles)
