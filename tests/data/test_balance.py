"""Balanced sampling: what comes how often, in what order, and what a solved head makes of it."""

import csv
from collections import Counter

import numpy as np
import pytest
import torch
from vfm_runtime.errors import DataError, OptionError

from tests.image_folders import write_image_folder
from tests.tasks.tiny import fit, vit
from vfm.data import DetectionData, FolderData, TableData
from vfm.data.feature_dataset import StoredFeatures
from vfm.data.sampler import EpochSampler
from vfm.heads_on_features.logistic import fit_logistic_regression
from vfm.models.heads import LinearHead
from vfm.preprocess import Preprocess

FIXED = {"batch_size": 10, "num_workers": 0, "val_fraction": 0.0, "test_fraction": 0.0}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 images of two labels; 3 of each label are of site b."""
    folder = tmp_path_factory.mktemp("balance")
    root = write_image_folder(folder / "images", num_classes=2, images_per_class=30)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "site", "one", "id", "both"])
        for index, path in enumerate(sorted(root.rglob("*.png"))):
            site = "b" if index % 10 == 0 else "a"
            label = path.parent.name
            cells = [site, "x", index, "|".join({label, "class_0"})]
            writer.writerow([path.relative_to(folder), label, *cells])
    return folder / "table.csv"


def read(table, **options):
    data = TableData(table, **(FIXED | {"augment": "none", "group_columns": ["site"]} | options))
    data.preprocess = Preprocess(size=(8, 8))
    return data


def test_each_label_of_each_group_comes_equally_often(table):
    data = read(table, balance="group")
    loader = data.train_dataloader()
    records = data.records["train"]
    seen = [index for batch in loader for index in batch["index"].tolist()]
    assert len(seen) == 60
    counts = Counter((records[i].groups[0], records[i].label) for i in seen)
    assert set(counts) == {(site, label) for site in "ab" for label in (0, 1)}
    assert all(abs(count - 15) <= 2 for count in counts.values())  # 27 and 3 images of each label
    assert data.weigh_records().mean() == pytest.approx(1)
    assert read(table).weigh_records() is None
    half = read(table, balance="group", balance_power=0.5).weigh_records()
    assert half.mean() == pytest.approx(1)
    assert half.max() / half.min() == pytest.approx(3)  # 27 and 3 images: of 9, the root


def test_labels_come_equally_often(tmp_path):
    root = write_image_folder(tmp_path, num_classes=2, images_per_class=12)
    for path in sorted((root / "class_1").iterdir())[4:]:
        path.unlink()
    data = FolderData(root, augment="light", balance="label", **FIXED)
    data.preprocess = Preprocess(size=(8, 8))
    batches = list(data.train_dataloader())
    assert Counter(torch.cat([b["target"].label for b in batches]).tolist()) == {0: 8, 1: 8}
    # One image again is not one picture again: its augmentation is another.
    pictures = {b["image"][i].numpy().tobytes() for b in batches for i in range(len(b["index"]))}
    assert len(pictures) > len({i for b in batches for i in b["index"].tolist()})


def test_one_and_two_ranks_see_the_same_order(table):
    weights = read(table, balance="group").weigh_records()
    options = {"shuffle": True, "seed": 3, "weights": weights}

    def draw(epoch, **ranks):
        sampler = EpochSampler(60, **options, **ranks)
        sampler.set_epoch(epoch)
        return list(sampler)

    for epoch in (0, 1):
        halves = [draw(epoch, rank=rank, num_replicas=2) for rank in (0, 1)]
        assert draw(epoch) == [pair for both in zip(*halves, strict=True) for pair in both]
    assert draw(0) != draw(1)


def test_stored_features_are_repeated_too(table):
    data = read(table, balance="group")
    data.setup("fit")
    stored = StoredFeatures(data.records["train"], 0)
    stored.fill({"pooled": np.arange(60, dtype=np.float32)[:, None]}, {})
    (batch,) = stored.__getitems__([(0, 5), (0, 65), (0, 125)])
    assert batch["features"]["pooled"].tolist() == [[5.0]] * 3
    assert batch["index"].tolist() == [5, 5, 5]


@pytest.mark.parametrize("multilabel", [False, True])
def test_an_image_of_weight_three_counts_as_three(multilabel):
    rng = np.random.default_rng(0)
    features, target = rng.normal(size=(60, 5)), rng.integers(0, 3, 60)
    features += target[:, None]
    weights = rng.integers(1, 4, 60)
    truth = np.eye(3)[target] if multilabel else target
    options = {"c": 0.7, "scaling": "none", "multilabel": multilabel}
    weighed = fit_logistic_regression(features, truth, sample_weights=weights, **options)
    repeated = np.repeat(np.arange(60), weights)
    plain = fit_logistic_regression(features[repeated], truth[repeated], **options)
    np.testing.assert_allclose(
        weighed.compute_logits(features), plain.compute_logits(features), atol=2e-2
    )
    unweighed = fit_logistic_regression(features, truth, **options)
    difference = unweighed.compute_logits(features) - weighed.compute_logits(features)
    assert np.abs(difference).max() > 0.1


def test_a_solved_head_weighs_the_images(table, tmp_path):
    heads = []
    for name in ("none", "group"):
        torch.manual_seed(0)
        task = vit(adapt="linear", head=LinearHead(c=1.0, scaling="none"))
        fit(tmp_path / name, task, read(table, balance=name), max_epochs=1)
        heads.append(task.head.state_dict())
    assert any(not torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    task = vit(adapt="linear", head=LinearHead(solver="lda"))
    with pytest.raises(OptionError, match="only logistic regression heeds"):
        fit(tmp_path / "lda", task, read(table, balance="group"), max_epochs=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"group_columns": []}, r"needs to know the groups\. .*--data\.group_columns \[site\]"),
        ({"balance_power": 0.0}, r"--data\.balance_power is 0\. Give a number above 0 up to 1"),
        ({"group_columns": ["one"]}, "'one' is 'x' for all 60 images"),
        ({"group_columns": ["id"]}, "has 60 values for 60 images"),
        (
            {"balance": "label", "label_column": "both", "label_separator": "|"},
            "for one label an image; here several may apply. Give --model.class_weights",
        ),
    ],
)
def test_what_cannot_be_balanced_is_refused_before_any_work(table, options, match):
    with pytest.raises((OptionError, DataError), match=match):
        read(table, **({"balance": "group"} | options)).setup("fit")


def test_other_data_has_no_balanced_sampling(tmp_path):
    with pytest.raises(OptionError, match="balance is 'label', but DetectionData has no balanced"):
        DetectionData(tmp_path, balance="label")
