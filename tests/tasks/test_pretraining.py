"""PretrainingTask: parts of training learn and stay out of the model; embeddings are judged; alarms in plain words."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vfm_runtime
from torch import nn
from vfm_runtime.errors import OptionError
from vfm_runtime.media.image import open_image

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import VIT, shapes, trainer
from vfm.bundle.export import export
from vfm.data.records import Record
from vfm.metrics.embeddings import compute_effective_rank, compute_uniformity
from vfm.preprocess import Preprocess
from vfm.tasks import Optim, PretrainingTask
from vfm.tasks.pretraining.results import list_alarms, measure_embeddings
from vfm.training.sharding import FSDP2


class MeanColor(PretrainingTask):
    """Learns to tell the mean color of an image."""

    def build_parts(self, data):
        return {"projector": nn.Linear(self.backbone.info.width, 3)}

    def compute_losses(self, raw, batch):
        color = batch["image"].float().mean((1, 2)) / 255
        guess = self.training_parts["projector"](raw["embedding"])
        return {"color": (guess - color).square().sum()}


def build(**changes):
    settings = {"image_size": 32, "backbone_args": VIT, "optim": Optim(lr=3e-3)}
    return MeanColor("vit_tiny_patch16_224", **(settings | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pretrained")
    task = build()
    before = [p.clone() for p in task.backbone.parameters()]
    made = trainer(root, max_epochs=2)
    made.fit(task, datamodule=shapes())
    assert any(
        not torch.equal(a, b) for a, b in zip(before, task.backbone.parameters(), strict=True)
    )
    groups = {p for group in made.optimizers[0].param_groups for p in group["params"]}
    assert set(task.training_parts.parameters()) < groups
    return root


def test_the_checkpoint_embeds_and_its_backbone_starts_other_tasks(run):
    best = run / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    assert "training_parts.projector.weight" in content["state_dict"]
    task = MeanColor.load(best, trust=["tests"])
    assert not task.training_parts
    images = torch.randint(0, 255, (3, 32, 32, 3), dtype=torch.uint8)
    vectors = task.answer(images)["embedding"]
    assert vectors.norm(dim=1).detach().numpy() == pytest.approx(np.ones(3), abs=1e-5)
    student = vfm.ClassificationTask(
        "vit_tiny_patch16_224", image_size=32, backbone_args=VIT, weights=best
    )
    assert student.backbone.report.matched == student.backbone.report.total
    for name, value in task.backbone.state_dict().items():
        assert torch.equal(student.backbone.state_dict()[name], value), name


@pytest.mark.slow
def test_its_bundle_answers_vectors_without_torch(run, tmp_path):
    best, bundle = run / "checkpoints" / "best.ckpt", tmp_path / "bundle"
    folder = write_image_folder(
        tmp_path / "images", num_classes=2, images_per_class=3, size=[(40, 30)]
    )
    export(best, out=bundle, images=folder, num_images=6, trust=["tests"])
    model = vfm_runtime.load(bundle)
    assert {path.name for path in bundle.glob("*.onnx")} == {"preprocess.onnx", "model.onnx"}
    image = next(folder.rglob("*.png"))
    task = MeanColor.load(best, trust=["tests"])
    pixels = torch.from_numpy(task.preprocess.resize(open_image(image))[0][None])
    expected = task.answer(pixels)["embedding"][0].detach().numpy()
    assert model.predict(image).vector == pytest.approx(expected, abs=1e-4)


def test_training_goes_on_with_its_parts(run, tmp_path):
    last = run / "checkpoints" / "last.ckpt"
    task = build()
    trainer(tmp_path, max_epochs=2).fit(task, datamodule=shapes(), ckpt_path=last)
    stored = torch.load(last, weights_only=True)["state_dict"]
    assert torch.equal(
        task.training_parts["projector"].weight, stored["training_parts.projector.weight"]
    )


def test_results_by_class_and_their_page(run):
    best = run / "checkpoints" / "best.ckpt"
    task = MeanColor.load(best, trust=["tests"])
    trainer(run).validate(task, datamodule=shapes(), verbose=False)
    results = json.loads((best.parent / "results.json").read_text())["val"]
    assert results["num_labeled"] == results["num_samples"] == 24
    assert results["knn"]["low"] <= results["knn"]["value"] <= results["knn"]["high"]
    assert 1 <= results["rankme"] <= 24
    assert [row["class"] for row in results["groups"]["class"]] == ["class_0", "class_1", "class_2"]
    page = (best.parent / "report_val.html").read_text()
    assert "Effective rank" in page
    assert "Highest loss: class_" in page


def test_average_weights_and_no_labels(tmp_path):
    folder = tmp_path / "images"
    write_image_folder(folder, num_classes=2, images_per_class=10, size=[(40, 30)])
    data = vfm.UnlabeledData(folder, val_fraction=0.2, batch_size=8, num_workers=0)
    task = build(optim=Optim(lr=1e-3, ema=0.9))
    made = trainer(tmp_path)
    made.fit(task, datamodule=data)
    assert "val/rankme" in made.callback_metrics
    assert "val/knn" not in made.callback_metrics
    assert {name: len(records) for name, records in data.records.items()} == {"train": 16, "val": 4}
    spec = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["vfm"]["data"][
        "spec"
    ]
    again = vfm.UnlabeledData(**spec["init_args"])
    assert again.fingerprint() == data.fingerprint()


def test_folders_of_splits_are_followed_and_others_train(tmp_path):
    for split, count in (("train", 3), ("test", 2), ("unlabeled", 4)):
        write_image_folder(tmp_path / split, num_classes=1, images_per_class=count, size=[(9, 9)])
    data = vfm.UnlabeledData(tmp_path, val_fraction=0.3)
    data.setup("fit")
    assert {name: len(records) for name, records in data.records.items()} == {
        "train": 5,
        "val": 2,
        "test": 2,
    }
    assert all(record.name.startswith("test") for record in data.records["test"])


def test_clusters_of_a_table_come_equally_often(tmp_path):
    write_image_folder(tmp_path, num_classes=1, images_per_class=12, size=[(9, 9)])
    paths = sorted(tmp_path.rglob("*.png"))
    rows = [f"{path},{1 if i < 9 else 2}" for i, path in enumerate(paths)]
    table = tmp_path / "clusters.csv"
    table.write_text("\n".join(["path,cluster", *rows]) + "\n")
    options = {"group_columns": ["cluster"], "val_fraction": 0.0, "num_workers": 0}
    data = vfm.UnlabeledData(table, balance="group", batch_size=4, **options)
    data.preprocess = Preprocess(size=(8, 8))
    data.setup("fit")
    shown = [name for batch in data.train_dataloader() for name in batch["name"]]
    assert sum(name in map(str, paths[9:]) for name in shown) == 6
    (tmp_path / "run").mkdir()
    again = vfm.UnlabeledData(**data.keep_split(tmp_path / "run")["init_args"])
    assert np.array_equal(again.weigh_records(), data.weigh_records())
    with pytest.raises(OptionError, match=r"is label, and UnlabeledData reads no labels\. Give"):
        vfm.UnlabeledData(table, balance="label")
    with pytest.raises(OptionError, match=r"names columns of a table, and .* is a folder"):
        vfm.UnlabeledData(tmp_path, **options).setup("fit")


def test_predict_is_refused_with_what_to_do(run):
    task = MeanColor.load(run / "checkpoints" / "best.ckpt", trust=["tests"])
    with pytest.raises(OptionError, match=r"vfm embed best\.ckpt my_images"):
        trainer(run).predict(task, datamodule=shapes())


def test_rank_and_uniformity_tell_a_collapse():
    random = np.random.default_rng(0).normal(size=(400, 16))
    assert compute_effective_rank(random) > 15
    assert compute_effective_rank(np.outer(random[:, 0], random[0])) == pytest.approx(1, abs=0.01)
    assert compute_uniformity(random) < -2
    assert compute_uniformity(np.ones((5, 4))) == pytest.approx(0, abs=1e-9)


def test_neighbors_leave_the_image_itself_out():
    # Pairs of equal vectors of two classes: the nearest other image is always of the other class.
    vectors = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)
    records = [Record("", i % 2, str(i)) for i in range(8)]
    quality = measure_embeddings(vectors, records, 2)
    assert quality.metrics["knn"] == 0
    alone = [Record("", -1, str(i)) for i in range(8)]
    assert "knn" not in measure_embeddings(vectors, alone, 0).metrics


def test_alarms_say_what_is_wrong_and_what_to_do():
    fine = {"uniformity": -2.5, "rankme": 40.0, "knn": 0.8}
    assert list_alarms(fine, 192, 0.82, 1000) == {}
    point = list_alarms(fine | {"uniformity": -0.001}, 192, 0.8, 1000)
    assert point["collapse"].startswith("All images get nearly the same vector (uniformity -0.001")
    assert "--model.optim.lr" in point["collapse"]
    low = list_alarms(fine | {"rankme": 2.0}, 192, 0.8, 1000)
    assert low["low rank"].startswith("The vectors use 2.0 of their 192 dimensions (RankMe)")
    falling = list_alarms(fine | {"knn": 0.6}, 192, 0.8, 1000)
    assert falling["falling kNN"].startswith("kNN has fallen to 0.600 from 0.800")
    assert list_alarms(fine | {"knn": 0.6}, 192, 0.8, 20) == {}  # so few images tell nothing


def test_an_alarm_is_given_once(tmp_path):
    class Constant(MeanColor):
        def evaluate(self, batch):
            answer = super().evaluate(batch)
            return answer | {"embedding": torch.ones_like(answer["embedding"])}

    task = Constant("vit_tiny_patch16_224", image_size=32, backbone_args=VIT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_epochs=3).fit(task, datamodule=shapes())
    assert sum("nearly the same vector" in str(w.message) for w in caught) == 1


def test_weights_are_not_sharded():
    task = build()
    task._trainer = SimpleNamespace(strategy=FSDP2())
    with pytest.raises(OptionError, match=r"^MeanColor shards no parts .* --trainer\.strategy ddp"):
        task.configure_model()
