"""The dense head: pyramid, points, suppression, its loss, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import batched_nms
from vfm_runtime.errors import MismatchError, OptionError

from vfm.losses import DenseLoss
from vfm.losses.dense import assign_points
from vfm.models.backbone import Backbone
from vfm.models.heads import DenseHead
from vfm.models.heads.dense import suppress
from vfm.models.heads.head_weights import OBJECTS, choose_start, load_head_weights
from vfm.models.tensors import compute_checksum
from vfm.models.weights import WeightsError
from vfm.types import FeatureInfo, Features, Objects

PLAIN = FeatureInfo(48, 48, (48, 48, 48, 48), (16, 16, 16, 16))
PYRAMID = FeatureInfo(64, 64, (16, 24, 32, 64), (4, 8, 16, 32))


def make_features(info: FeatureInfo, side: int = 128, number: int = 2) -> Features:
    torch.manual_seed(1)
    maps = [
        torch.randn(number, width, side // stride, side // stride)
        for width, stride in zip(info.map_widths, info.map_strides, strict=True)
    ]
    return Features(torch.empty(0), torch.empty(0), tuple(maps))


def make_head(info: FeatureInfo = PYRAMID, **arguments: Any) -> DenseHead:
    torch.manual_seed(0)
    head = DenseHead(**({"width": 32} | arguments))
    head.prepare(info, ("a", "b", "c"))
    return head


@pytest.mark.parametrize("info", [PLAIN, PYRAMID], ids=["plain", "pyramid"])
def test_every_point_of_three_levels_answers(info: FeatureInfo) -> None:
    head = make_head(info)
    raw = head(make_features(info))
    number = 16**2 + 8**2 + 4**2
    assert {name: tuple(values.shape) for name, values in raw.items()} == {
        "logits": (2, number, 3),
        "boxes": (2, number, 4),
        "points": (2, number, 2),
    }
    assert raw["logits"].sigmoid().mean() < 0.05
    # Before anything was learned a box reaches two strides to each side.
    torch.testing.assert_close(raw["boxes"][..., :2], raw["points"], atol=0.1, rtol=0)
    assert float(raw["boxes"][0, :256, 2].mean()) == pytest.approx(4 / 16, rel=0.1)
    assert float(raw["boxes"][0, -16:, 2].mean()) == pytest.approx(4 / 4, rel=0.1)
    (raw["logits"].square().sum() + raw["boxes"].square().sum()).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_a_head_starts_from_an_earlier_one(tmp_path: Path) -> None:
    earlier = make_head()
    torch.nn.init.normal_(earlier.classes.bias)
    file = tmp_path / "earlier.ckpt"
    state = {f"head.{name}": value for name, value in earlier.state_dict().items()}
    torch.save({"state_dict": state, "vfm": {"labels": ["a", "b", "c"]}}, file)
    torch.manual_seed(1)
    head = DenseHead(width=32)
    head.prepare(PYRAMID, ("new", "c", "a"))
    fresh = head.classes.bias[0].item()
    text = load_head_weights(head, file)
    number = len(head.state_dict())
    assert text == f"Head from {file}: {number} of {number} tensors; classes it knows: c, a."
    assert head.classes.bias.tolist() == [fresh, *earlier.classes.bias[[2, 0]].tolist()]
    torch.testing.assert_close(head.classes.weight[2], earlier.classes.weight[0])
    torch.testing.assert_close(head.sides.weight, earlier.sides.weight)
    # Another backbone has other widths where it enters, and the rest is of use all the same.
    other = DenseHead(width=32)
    other.prepare(PLAIN, ("x",))
    assert "that meet another backbone start anew; classes it knows: none." in load_head_weights(
        other, file
    )
    torch.testing.assert_close(other.sides.weight, earlier.sides.weight)


def test_a_head_that_has_seen_objects_fits_its_backbone() -> None:
    assert OBJECTS.stat().st_size < 4e6
    head, backbone = DenseHead(), Backbone("tf_efficientnet_lite0", pretrained=False)
    backbone.select_outputs(head.uses)
    head.prepare(backbone.info, ("a", "b"))
    fresh = {name: value.clone() for name, value in head.classes.state_dict().items()}
    number = len(head.state_dict())
    text = load_head_weights(head, OBJECTS)
    assert text == f"Head from {OBJECTS}: {number - 2} of {number} tensors; classes it knows: none."
    tensors = {k: v.half() for k, v in head.state_dict().items() if not k.startswith("classes.")}
    card = json.loads(OBJECTS.with_suffix(".json").read_text())
    assert compute_checksum(tensors) == card["checksum"]
    torch.testing.assert_close(dict(head.classes.state_dict()), fresh)


def test_what_a_head_starts_from() -> None:
    lite, other = "tf_efficientnet_lite0", "vit_tiny_patch16_224"

    def choose(weights: str | None, backbone: str, *, is_pretrained: bool, **arguments: int) -> Any:
        head = DenseHead(weights=weights, **arguments)
        return choose_start(head, backbone, is_pretrained=is_pretrained)

    assert choose("auto", f"{lite}.in1k", is_pretrained=True) == (OBJECTS, "")
    for backbone, is_pretrained, width in (
        (other, True, 128),
        (lite, False, 128),
        (lite, True, 64),
    ):
        path, text = choose("auto", backbone, is_pretrained=is_pretrained, width=width)
        assert path is None
        assert "starts at random: that one which has seen objects is the default for tf_eff" in text
    for weights in (None, "none"):
        assert choose(weights, lite, is_pretrained=True) == (None, "")
    assert choose("objects", other, is_pretrained=False) == (OBJECTS, "")
    assert choose("my.ckpt", lite, is_pretrained=True) == (Path("my.ckpt"), "")


def test_what_is_no_earlier_head_is_refused(tmp_path: Path) -> None:
    wide, file = make_head(width=48), tmp_path / "wide.ckpt"
    torch.save({f"neck.{k}": v for k, v in wide.state_dict().items()}, file)
    with pytest.raises(
        WeightsError, match=r"wide\.ckpt holds no DenseHead: none of its \d+ tensors"
    ):
        load_head_weights(make_head(), file)
    torch.save(wide.state_dict(), file)
    match = r"wide\.ckpt does not fit: .* is \[48.*and \[32.*--model.head.width"
    with pytest.raises(MismatchError, match=match):
        load_head_weights(make_head(), file)
    with pytest.raises(WeightsError, match=r"There is no file .*none\.ckpt of a head's weights"):
        load_head_weights(make_head(), tmp_path / "none.ckpt")
    file.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot be read as the weights of a head"):
        load_head_weights(make_head(), file)


def test_suppression_is_greedy() -> None:
    torch.manual_seed(0)
    start = torch.rand(3, 120, 2) * 0.6
    corners = torch.cat([start, start + 0.1 + 0.3 * torch.rand(3, 120, 2)], -1)
    labels = torch.randint(2, (3, 120))
    scores = torch.linspace(1, 0.1, 120)
    kept = suppress(corners, labels, 0.4)
    for image in range(3):
        expected = batched_nms(corners[image], scores, labels[image], 0.4)
        assert kept[image].nonzero().squeeze(1).tolist() == expected.tolist()
    assert 10 < kept[0].sum() < 110


def test_answers_are_the_best_boxes_once() -> None:
    logits = torch.tensor([[[3.0, -9.0], [2.0, -9.0], [-9.0, 1.0], [0.0, -9.0]]])
    boxes = torch.tensor(
        [[[0.5, 0.5, 0.2, 0.2], [0.51, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]]
    )
    geometry = torch.tensor([[0.0, 0.0, 100.0, 50.0, 100.0, 50.0]])
    head = make_head(max_boxes=3)
    answers = head.decode({"logits": logits, "boxes": boxes}, geometry)
    assert answers["labels"].tolist() == [[0, 1, 0]]
    torch.testing.assert_close(answers["scores"], torch.tensor([[3.0, 1.0, 0.0]]).sigmoid())
    expected = torch.tensor([[[40.0, 20, 60, 30], [40, 20, 60, 30], [5, 2.5, 15, 7.5]]])
    torch.testing.assert_close(answers["boxes"], expected)


def test_points_within_an_object_learn_it_and_the_best_one_most() -> None:
    grid = (torch.arange(8) + 0.5) / 8
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    points = torch.stack([x, y], -1).reshape(1, -1, 2).repeat(2, 1, 1)
    boxes = torch.cat([points, torch.full_like(points, 0.4)], -1)
    logits = torch.zeros(2, 64, 2)
    objects = Objects(
        torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.8, 0.83, 0.01, 0.01]]),
        torch.tensor([1, 0]),
        torch.tensor([2, 0]),
    )
    assigned = assign_points(logits, boxes, points, objects)
    image, point = assigned.point
    assert image.tolist() == [0] * len(point)
    large = assigned.object == 0
    assert large.sum() == 10
    offset = (points[0, point[large]] - 0.5).abs().amax(1)
    assert (offset < 0.2).all()
    assert assigned.fit[large].argmax() in torch.where(offset == offset.min())[0]
    # The small object holds no point: the nearest one is its own.
    assert points[0, point[~large]].tolist() == [[0.8125, 0.8125]]


def test_the_loss_falls_and_counts_each_object_once() -> None:
    head = make_head()
    features = make_features(PYRAMID)
    objects = Objects(
        torch.tensor([[0.3, 0.3, 0.3, 0.2], [0.7, 0.6, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]]),
        torch.tensor([0, 1, 2]),
        torch.tensor([2, 1]),
    )
    loss, optimizer = DenseLoss(), torch.optim.AdamW(head.parameters(), 3e-3)
    totals = []
    for _ in range(60):
        total = sum(loss(head(features), {"target": objects}).values())
        optimizer.zero_grad()
        total.backward()  # type: ignore[union-attr]
        optimizer.step()
        totals.append(float(total))
    assert totals[-1] < 0.4 * totals[0]
    answers = head.decode(head(features))
    assert answers["labels"][1, 0] == 2
    corners = torch.tensor([0.05, 0.05, 0.95, 0.95])
    torch.testing.assert_close(answers["boxes"][1, 0], corners, atol=0.15, rtol=0)


def test_images_without_objects_alone_are_learned_from() -> None:
    head = make_head()
    none = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0]))
    losses = DenseLoss()(head(make_features(PYRAMID)), {"target": none})
    assert losses["overlap"] == 0
    assert losses["classes"] > 0
    losses["classes"].backward()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"width": 40}, r"width is 40. Give a multiple of 16 \(--model.head.width\)."),
        ({"depth": 0}, r"depth is 0. Give 1 or more \(--model.head.depth\)."),
        ({"max_boxes": 0}, "max_boxes is 0. Give 1 or more"),
        ({"suppress_above": 0.0}, r"suppress_above is 0.0. Give an IoU above 0, at most 1"),
    ],
)
def test_arguments_outside_their_range(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        DenseHead(**arguments)
