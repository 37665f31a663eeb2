"""A loss that is no number: its report and its replay, of every task; targets taken apart and put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from tests.tasks.test_multilabel import stripes, write_stripes
from tests.tasks.tiny import VIT, require_report, shapes, vit
from vfm.data import SyntheticScenes
from vfm.models.heads import DetrHead
from vfm.tasks import DetectionTask
from vfm.types import Labels, MultiLabels, Objects, require_target, select_image

NAN = float("nan")


def spoil_label(batch: Any, position: int) -> None:
    shares = F.one_hot(batch["target"].label, 3).float()
    shares[position] = NAN
    batch["target"] = Labels(shares)


def spoil_labels(batch: Any, position: int) -> None:
    assert type(batch["target"]) is MultiLabels
    batch["target"].label[position] = NAN


def spoil_boxes(batch: Any, position: int) -> None:
    counts = batch["target"].counts
    assert counts[position] > 0
    batch["target"].boxes[counts[:position].sum()] = NAN


def spoil_features(batch: Any, position: int) -> None:
    assert batch["image"].numel() == 0
    batch["features"]["pooled"][position] = NAN


def test_one_label(tmp_path: Path) -> None:
    require_report(tmp_path, vit(), shapes(), spoil_label)


def test_several_labels(tmp_path: Path) -> None:
    table = write_stripes(tmp_path / "stripes")
    task = vit(multilabel=True, fit="squash")
    require_report(tmp_path, task, stripes(table), spoil_labels)


def test_boxes(tmp_path: Path) -> None:
    L.seed_everything(0)
    task = DetectionTask(
        "vit_tiny_patch16_224",
        DetrHead(num_queries=10, num_groups=2, num_layers=1),
        pretrained=False,
        image_size=64,
        backbone_args={**VIT, "patch_size": 8},
    )
    data = SyntheticScenes(num_images=24, image_size=64, batch_size=4)
    require_report(tmp_path, task, data, spoil_boxes)


def test_features_of_a_frozen_backbone(tmp_path: Path) -> None:
    require_report(tmp_path, vit(adapt="linear"), shapes(), spoil_features)


def test_one_image_of_a_batch() -> None:
    objects = Objects(torch.arange(12.0).view(3, 4), torch.arange(3), torch.tensor([2, 0, 1]))
    batch: Any = {
        "image": torch.arange(3).view(3, 1, 1, 1),
        "geometry": torch.arange(18.0).view(3, 6),
        "features": {"pooled": torch.arange(6.0).view(3, 2)},
        "target": objects,
        "index": torch.tensor([7, 8, 9]),
        "name": ["a", "b", "c"],
        "skipped": [],
    }
    assert objects.loss_divisor == 3
    parts = [select_image(batch, position) for position in range(3)]
    assert [part["name"] for part in parts] == [["a"], ["b"], ["c"]]
    assert [part["target"].labels.tolist() for part in parts] == [[0, 1], [], [2]]
    assert [part["target"].counts.tolist() for part in parts] == [[2], [0], [1]]
    assert [part["target"].loss_divisor for part in parts] == [2, 0, 1]
    torch.testing.assert_close(parts[2]["target"].boxes, objects.boxes[2:])
    assert parts[1]["index"].tolist() == [8]
    assert parts[1]["features"]["pooled"].tolist() == [[2.0, 3.0]]
    assert parts[1]["geometry"].shape == (1, 6)
    several = MultiLabels(torch.eye(3)).select(1)
    assert type(several) is MultiLabels
    assert several.label.tolist() == [[0, 1, 0]]


def test_a_target_of_another_task_is_refused() -> None:
    batch: Any = {"target": Labels(torch.tensor([0]))}
    with pytest.raises(
        TypeError, match=r"DetrHead reads Objects, but the data gives Labels\. Give a loss and data"
    ):
        require_target(batch, Objects, DetrHead())
