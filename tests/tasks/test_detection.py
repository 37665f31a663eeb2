"""Finding objects, from generated scenes to the bundle."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import onnx
import pytest
import torch
import vfm_runtime
from PIL import Image

import vfm
from tests.data.boxes_written import write
from tests.tasks.tiny import shapes, stored, trainer, vit
from vfm.bundle.export import export
from vfm.cli import main
from vfm.data import DetectionData, SyntheticScenes
from vfm.data.detection.dataset import BoxAugment
from vfm.models.heads import DenseHead, DetectionHead, DetrHead
from vfm.tasks import BaseTask, DetectionTask, Optim

ARGS = {"embed_dim": 96, "depth": 1, "num_heads": 3, "patch_size": 8}
PLAIN = BoxAugment(mosaic=0, zoom=(1, 1), flip=0, colors="none", close_mosaic=0)


class Same(SyntheticScenes):
    """Validated and tested on what was trained on."""

    def read(self) -> dict[str, Any]:
        train = super().read()["train"]
        return {"train": train, "val": train, "test": train}


def task(**changes: Any) -> DetectionTask:
    settings: dict[str, Any] = {
        "backbone": "vit_tiny_patch16_224",
        "pretrained": False,
        "image_size": 64,
        "backbone_args": ARGS,
        "head": DetrHead(num_queries=20, num_groups=2, num_layers=1),
        "optim": Optim(lr=1e-3, max_grad_norm=0.1, weight_decay=1e-4),
    }
    return DetectionTask(**(settings | changes))


def scenes(**changes: Any) -> SyntheticScenes:
    settings: dict[str, Any] = {"num_images": 24, "image_size": 64, "batch_size": 4}
    return SyntheticScenes(**(settings | changes))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("files"), "coco")


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    L.seed_everything(0)
    made = trainer(root, max_epochs=2)
    data = DetectionData(files, batch_size=4, num_workers=0)
    made.fit(task(), datamodule=data)
    return root


@pytest.fixture
def best(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def test_checkpoint_rebuilds_the_task(best: Path) -> None:
    again = BaseTask.load(best)
    assert isinstance(again, DetectionTask)
    assert again.labels == ("class_0", "class_1", "class_2")
    assert again.head.shape.num_queries == 20
    pixels = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    rows = torch.tensor([[0.0, 0.0, 64.0, 64.0, 64.0, 64.0]])
    with torch.no_grad():
        first, second = (loaded.answer(pixels, rows) for loaded in (again, BaseTask.load(best)))
    assert torch.equal(first["boxes"], second["boxes"])
    assert first["boxes"].shape == (1, 20, 4)


def test_results_and_their_page(best: Path, files: Path) -> None:
    loaded = BaseTask.load(best)
    made = trainer(best.parents[1])
    data = DetectionData(files, batch_size=4, num_workers=0)
    (logged,) = made.test(loaded, datamodule=data, verbose=False)
    results = json.loads((best.parent / "results.json").read_text())["test"]
    assert results["AP"] == pytest.approx(logged["test/AP"])
    assert results["num_samples"] == 6
    assert set(results) >= {"AP75", "AP_small", "AR_100", "per_class", "confusion_matrix", "curves"}
    assert set(results["AP50"]) == {"value", "low", "high"}
    assert [row["label"] for row in results["per_class"]] == list(loaded.labels)
    page = (best.parent / "report_test.html").read_text()
    assert "Worst images" in page
    for name in ("curves", "confusion_matrix", "best", "worst"):
        with Image.open(best.parent / f"{name}_test.png") as picture:
            assert min(picture.size) > 100


def test_predictions_as_rows(best: Path, files: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path)
    loaded = BaseTask.load(best)
    loaded.head.classes.bias.data += 5  # type: ignore[operator]
    (files / "test" / "broken.png").write_bytes(b"none")
    try:
        made.predict(loaded, datamodule=DetectionData(files / "test", num_workers=0))
    finally:
        (files / "test" / "broken.png").unlink()
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert {row["path"] for row in rows} > {"broken.png"}
    (broken,) = (row for row in rows if row["path"] == "broken.png")
    assert broken["error"]
    assert not broken["xmin"]
    for row in rows:
        if row["label"]:
            assert 0 <= float(row["xmin"]) <= float(row["xmax"]) <= 64


def test_the_command_writes_pre_labels(
    best: Path, files: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["predict", f"--ckpt_path={best}", f"--data.root={files / 'test'}"]
    words += ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}", "--to", "yolo"]
    assert main([*words, "--threshold", "0.02", "--data.num_workers=0"]) == 0
    folder = tmp_path / "prelabels_yolo"
    assert f"Pre-labels of 6 images for yolo: {folder}" in capsys.readouterr().out
    rows = [r for r in csv.DictReader((tmp_path / "predictions.csv").open()) if r["label"]]
    data = DetectionData(folder, val_fraction=0.0, test_fraction=0.0)
    data.setup()
    counts = sum(len(record.label) for split in data.records.values() for record in split)  # type: ignore[arg-type]
    assert counts == sum(float(row["score"]) >= 0.02 for row in rows) > 0
    for more, text in (
        ([], f"{folder} is there already"),
        (["--threshold", "2"], "--threshold is 2. Give the least score, from 0 to 1."),
        (["--to", "voc"], "--to is 'voc'. Choices: coco, yolo, labelstudio."),
    ):
        assert main([*words, *more]) != 0
        assert text in capsys.readouterr().err
    assert main(["fit", "--to", "coco"]) == 2
    assert "--to writes the predictions of vfm predict, not of fit." in capsys.readouterr().err


def test_python_gives_boxes_in_the_original(best: Path, tmp_path: Path) -> None:
    model = vfm.load(best, device="cpu")
    Image.new("RGB", (500, 130), "grey").save(tmp_path / "x.jpg")
    answer = model.predict(tmp_path / "x.jpg")
    assert isinstance(answer, vfm_runtime.Detections)
    assert answer.boxes.shape == (20, 4)
    assert answer.boxes[:, [0, 2]].max() > 64
    assert answer.boxes[:, [1, 3]].max() <= 130
    assert set(answer.labels) <= set(model.labels)


@pytest.mark.parametrize(
    ("head", "fit"),
    # That of a DETR head with tiles is compared in test_tiles.py.
    [("dense", "squash"), pytest.param("detr", "letterbox", marks=pytest.mark.slow)],
)
def test_bundle_answers_as_torch(
    best: Path, files: Path, photos: Path, tmp_path: Path, head: str, fit: str
) -> None:
    if head == "dense":
        data = DetectionData(files, batch_size=4, num_workers=0)
        # A backbone whose maps are a pyramid.
        pyramid = {"backbone": "test_efficientnet", "backbone_args": None}
        learning = task(head=DenseHead(width=32), **pyramid)
        trainer(tmp_path, max_epochs=1).fit(learning, datamodule=data)
        best = tmp_path / "checkpoints" / "best.ckpt"
    loaded = BaseTask.load(best)
    loaded.preprocess = type(loaded.preprocess)(**(loaded.preprocess.to_dict() | {"fit": fit}))
    loaded.head.classes.bias.data += 4  # type: ignore[operator]
    checkpoint = tmp_path / "x.ckpt"
    made = trainer(tmp_path)
    made.strategy.connect(loaded)
    content = stored(best)
    content["state_dict"] = loaded.state_dict()
    content["vfm"]["preprocess"] = loaded.preprocess.to_dict()
    torch.save(content, checkpoint)
    out = export(checkpoint, images=photos, out=tmp_path / "bundle", one_file=True)
    parity = json.loads((out / "parity.json").read_text())
    assert parity["passed"]
    assert parity["max_difference"] < 1e-4
    assert any(int(image["torch_label"].split()[0]) > 3 for image in parity["images"])
    graph = onnx.load(out / "model.onnx").graph
    assert not {"GridSample", "NonMaxSuppression"} & {node.op_type for node in graph.node}
    model, runtime = vfm.load(checkpoint, device="cpu"), vfm_runtime.load(out, device="cpu")
    paths = sorted(photos.iterdir())[:6]
    together = runtime.predict(paths[:3])  # a batch of another size
    for index, path in enumerate(paths):
        ours, theirs = runtime.predict(path), model.predict(path)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        if index < len(together):
            np.testing.assert_allclose(together[index].scores, theirs.scores, atol=1e-4)
    assert all(replayed.passed for replayed in vfm_runtime.bundle.golden.replay(runtime))
    if head == "dense":
        require_same_taught(model, runtime, paths)
    else:
        assert runtime.box_embedding is None


def require_same_taught(model: Any, runtime: Any, paths: list[Path]) -> None:
    """Teach torch's side and the bundle 1, 2 and 50 classes by the boxes that they find, and compare their answers."""
    boxes = np.unique(runtime.predict(paths[0]).boxes.round(1), axis=0)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    size = Image.open(paths[0]).size
    pictures = [Image.open(path).resize(size) for path in paths]
    pairs = [(picture, box[None]) for box in boxes for picture in pictures][:300]
    assert model.taught.store.read().fingerprint == runtime.taught.store.read().fingerprint
    for first, last in ((0, 1), (1, 2), (2, 50)):
        examples = {f"taught {k}": pairs[k::50] for k in range(first, last)}
        for side in (model, runtime):
            side.taught.teach(examples)
        for path in paths:
            ours, theirs = runtime.predict(path), model.predict(path)
            agreement = theirs.compare(ours)
            assert not agreement.changed
            assert agreement.difference < 1e-3
    assert len(ours.names) == 53


def test_resumed_training_goes_on(run: Path, files: Path, tmp_path: Path) -> None:
    data = DetectionData(files, batch_size=4, num_workers=0)
    made = trainer(tmp_path, max_epochs=3)
    made.fit(task(), datamodule=data, ckpt_path=run / "checkpoints" / "last.ckpt")
    assert made.global_step == 9


def test_a_small_set_trains_for_more_epochs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    with caplog.at_level("INFO"):
        made.fit(task(min_steps=25), datamodule=scenes(num_images=16, batch_size=4))
    assert made.global_step == 26
    said = r"2 steps an epoch: training for 13 epochs to reach 25 steps \(--model\.min_steps\)"
    assert re.search(said, caplog.text)


def test_enough_epochs_stay(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_epochs=2)
    made.fit(task(min_steps=3), datamodule=scenes(num_images=16, batch_size=4))
    assert made.global_step == 4


def test_batches_without_objects(tmp_path: Path) -> None:
    class Empty(SyntheticScenes):
        def read(self) -> dict[str, Any]:
            records = super().read()
            for number, record in enumerate(records["train"][:8]):
                nothing = record.objects._replace(  # type: ignore[union-attr]
                    corners=np.zeros((0, 4), np.float32), ignored=np.zeros(0, bool)
                )
                records["train"][number] = replace(record, label=(), objects=nothing)
            return records

    made = trainer(tmp_path, max_epochs=1)
    learning = task()
    made.fit(learning, datamodule=Empty(num_images=24, image_size=64, batch_size=2, augment=PLAIN))
    assert all(p.isfinite().all() for p in learning.parameters())


def test_a_dense_head_stands_odd_boxes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(0, 56, (500, 2))

    class Odd(SyntheticScenes):
        def read(self) -> dict[str, Any]:
            records = super().read()
            self.labels = (*self.labels, "once")
            once = len(self.labels) - 1
            cases = [
                (np.zeros((0, 4)), ()),  # alone in its batch
                (
                    np.array([[0, 0, 64, 64]]),
                    (once,),
                ),  # all of the image, and the one box of its class
                (np.hstack([corner, corner + random.uniform(1, 8, (500, 2))]), (0,) * 500),
            ]
            for number, (corners, labels) in enumerate(cases):
                record = records["train"][number]
                odd = record.objects._replace(  # type: ignore[union-attr]
                    corners=corners.astype(np.float32), ignored=np.zeros(len(corners), bool)
                )
                records["train"][number] = replace(record, label=labels, objects=odd)
            return records

    learning = task(head=DenseHead(width=32))
    data = Odd(num_images=16, image_size=64, batch_size=1, augment=PLAIN)
    losses = {}

    class Losses(L.Callback):
        def on_train_batch_end(
            self, run: Any, task: Any, outputs: Any, batch: Any, number: int
        ) -> None:
            losses[int(batch["index"])] = (len(batch["target"].labels), float(outputs["loss"]))

    with pytest.warns(UserWarning, match="such as scene-00002 with 500"):
        trainer(tmp_path, max_epochs=1, callbacks=[Losses()]).fit(learning, datamodule=data)
    assert [losses[number][0] for number in range(3)] == [0, 1, 500]
    assert all(0 < loss < 1e4 for _, loss in losses.values())
    assert all(p.isfinite().all() for p in learning.parameters())
    assert learning.labels[-1] == "once"


def test_several_sizes_in_training(tmp_path: Path) -> None:
    sizes = set()

    class Seen(L.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.backbone.register_forward_pre_hook(
                lambda module, args: (
                    sizes.add(tuple(args[0].shape[2:])) if module.training else None
                )
            )

    made = trainer(tmp_path, max_epochs=3, callbacks=[Seen()])
    arguments = {**ARGS, "dynamic_img_size": True}
    made.fit(task(multi_scale=0.4, backbone_args=arguments), datamodule=scenes())
    assert len(sizes) > 2
    assert all(side % 8 == 0 and 38 <= side <= 90 for size in sizes for side in size)


def test_backbone_is_frozen_at_first(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_epochs=2)
    rates: list[list[float]] = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            groups = trainer.optimizers[0].param_groups
            rates.append(
                [max(g["lr"] for g in groups if g["part"] == p) for p in ("backbone", "head")]
            )

    made.callbacks.append(Rates())  # type: ignore[attr-defined]
    optim = Optim(lr=1e-3, backbone_factor=0.1, freeze_ratio=0.5, warmup_ratio=0.0)
    made.fit(task(optim=optim), datamodule=scenes())
    half = len(rates) // 2
    assert all(backbone == 0 < head for backbone, head in rates[:half])
    assert all(backbone == pytest.approx(0.1 * head) for backbone, head in rates[half:])


def test_first_stages_stay_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"backbone": "test_efficientnet", "backbone_args": None}
    weights = tmp_path / "weights.pth"
    torch.save(task(**options).backbone.model.state_dict(), weights)
    options |= {"weights": weights, "min_coverage": 0.9, "head": DenseHead(32)}
    learning = task(freeze_at="auto", **options)
    model = learning.backbone.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level("INFO"):
        trainer(tmp_path, max_epochs=1).fit(learning, datamodule=scenes())
    assert "Frozen: the first 3 stages of the backbone (--model.freeze_at)." in caplog.text
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    # The stem, and the stages down to a stride of 4; the statistics of their norms too.
    assert not [
        n for n in changed if n.startswith(("conv_stem.", "bn1.", "blocks.0.", "blocks.1."))
    ]
    assert {"blocks.2.0.conv_exp.weight", "blocks.2.0.bn1.running_mean"} <= changed
    learning.train()
    outputs: list[torch.Tensor] = []
    for name in ("blocks.1", "blocks.2"):
        model.get_submodule(name).register_forward_hook(lambda *args: outputs.append(args[-1]))
    learning.backbone(torch.zeros(2, 3, 64, 64))
    assert [output.requires_grad for output in outputs] == [False, True]
    assert not any(module.training for module in model.blocks[1].modules())
    assert all(module.training for module in model.blocks[2].modules())
    entry = stored(tmp_path / "checkpoints/best.ckpt")["vfm"]["model"]
    assert entry["init_args"]["freeze_at"] == 3
    learning.backbone.freeze_stages(2)
    assert not any(p.requires_grad for p in model.blocks[0].parameters())
    assert all(p.requires_grad for p in model.blocks[1].parameters())


def test_rectangular_input(tmp_path: Path) -> None:
    learning = task(image_size=(64, 96))
    made = trainer(tmp_path, fast_dev_run=True)
    made.fit(learning, datamodule=scenes())
    assert learning.preprocess.size == (64, 96)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"fit": "crop"},
            r"fit is 'crop', which would cut objects away\. Choices: squash, letterbox",
        ),
        (
            {"image_size": 60},
            r"input of 60 x 60 pixels is no multiple of the backbone's stride of 8.*image_size 64",
        ),
        ({"multi_scale": 1.5}, r"multi_scale is 1\.5\. Give a share from 0 to below 1"),
        ({"min_steps": -1}, r"min_steps is -1\. Give 0 or more"),
        ({"freeze_at": -1}, r"freeze_at is -1\. Give 0 or more stages, or auto"),
    ],
)
def test_arguments_outside_their_range(arguments: dict[str, Any], match: str) -> None:
    if arguments.get("image_size"):
        arguments = arguments | {"backbone_args": {**ARGS, "dynamic_img_size": True}}
    with pytest.raises(ValueError, match=match):
        task(**arguments)


def test_data_without_boxes(tmp_path: Path) -> None:
    made = trainer(tmp_path, fast_dev_run=True)
    with pytest.raises(
        TypeError,
        match=r"DetectionTask learns from boxes, but SyntheticData has none\. Give --data",
    ):
        made.fit(task(), datamodule=shapes())


def test_boxes_are_no_labels_of_images(tmp_path: Path) -> None:
    made = trainer(tmp_path, fast_dev_run=True)
    with pytest.raises(
        TypeError, match=r"ClassificationTask labels whole images, but SyntheticScenes has boxes"
    ):
        made.fit(vit(), datamodule=scenes())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "norm", "steps"),
    [(DetrHead(num_queries=20), 0.1, 290), (DenseHead(width=64), 10.0, 145)],
    ids=["detr", "dense"],
)
def test_eight_scenes_are_learned_by_heart(
    tmp_path: Path, head: DetectionHead, norm: float, steps: int
) -> None:
    L.seed_everything(0)
    made = trainer(tmp_path, max_epochs=steps, check_val_every_n_epoch=steps)
    learning = task(
        image_size=128,
        backbone_args=ARGS | {"depth": 4},
        head=head,
        optim=Optim(lr=1e-3, max_grad_norm=norm, weight_decay=1e-4),
    )
    data = Same(num_images=16, image_size=128, batch_size=8, augment=PLAIN)
    made.fit(learning, datamodule=data)
    assert made.global_step == steps
    assert float(made.callback_metrics["val/AP50"]) > 0.9


def test_the_class_layer_is_solved_on_the_training_boxes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = scenes(num_images=32)
    made = task(head=DenseHead(width=32, depth=1), lp_ft=True, optim=Optim(lr=1e-9))
    with caplog.at_level("INFO"):
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(made, datamodule=data)
    found = re.search(
        r"Class layer solved on ([\d,]+) points, .* of which (\d+) % have", caplog.text
    )
    assert found is not None
    assert int(found[2]) > 60  # of three classes
    assert made.training
    # So it answers for other images too.
    logits = []
    made.eval()
    for batch in data.build_plain_loader("val"):
        raw = made.compute_raw(batch)
        objects = batch["target"]
        owner = torch.repeat_interleave(torch.arange(len(objects.counts)), objects.counts)
        distance = (raw["points"][owner] - objects.boxes[:, None, :2]).abs().sum(-1)
        best = distance.argmin(1)
        logits.append((raw["logits"][owner, best].argmax(1) == objects.labels).float())
    assert torch.cat(logits).mean() > 0.5


def test_classes_that_go_on_are_not_solved_anew(tmp_path: Path) -> None:
    data = scenes()
    data.setup("fit")
    earlier = task(head=DenseHead(width=32, depth=1))
    earlier.take_labels(data)
    state = {f"head.{name}": value for name, value in earlier.head.state_dict().items()}
    file = tmp_path / "earlier.ckpt"
    for labels in (earlier.labels, ("class_1", "x", "y"), ("x", "y", "z")):
        torch.save({"state_dict": state, "vfm": {"labels": list(labels)}}, file)
        head = DenseHead(width=32, depth=1, weights=str(file))
        made = task(head=head, lp_ft=True)
        trainer(tmp_path, max_steps=0).fit(made, datamodule=data)
        assert head.loaded_labels == tuple(x for x in earlier.labels if x in labels)
        rows = [label in head.loaded_labels for label in made.labels]
        source = [labels.index(label) for label in head.loaded_labels]
        torch.testing.assert_close(head.classes.weight[rows], earlier.head.classes.weight[source])
        unsolved = -math.log(99)
        assert (head.classes.bias[[not row for row in rows]] - unsolved).abs().gt(1e-3).all()
