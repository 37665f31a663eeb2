"""The DETR head: shapes, groups, sampling, decoding, export."""

import numpy as np
import onnxruntime
import pytest
import torch

from vfm.losses import DetectionLoss
from vfm.models.backbone import Backbone
from vfm.models.decoder import embed_boxes, move_boxes
from vfm.models.deformable import DeformableAttention, gather_points, sample_points
from vfm.models.heads import DetrHead
from vfm.models.pyramid import Projector
from vfm.types import FeatureInfo, Features, Objects

PLAIN = FeatureInfo(48, 48, (48, 48, 48, 48), (16, 16, 16, 16))
PYRAMID = FeatureInfo(64, 64, (16, 32, 64), (8, 16, 32))


def features(info, side=128, number=2):
    torch.manual_seed(1)
    maps = [
        torch.randn(number, width, side // stride, side // stride)
        for width, stride in zip(info.map_widths, info.map_strides, strict=True)
    ]
    return Features(torch.empty(0), torch.empty(0), tuple(maps))


def head(info=PLAIN, **arguments):
    torch.manual_seed(0)
    made = DetrHead(**arguments)
    made.prepare(info, ("a", "b", "c"))
    return made


@pytest.mark.parametrize("info", [PLAIN, PYRAMID], ids=["plain", "pyramid"])
@pytest.mark.parametrize("fine", [False, True])
def test_shapes(info, fine):
    made = head(info, fine=fine)
    places = min(100, 256 if fine else 64)
    raw = made.train()(features(info))
    assert raw["logits"].shape == (4, 2, 3, places, 3)
    assert raw["boxes"].shape == (4, 2, 3, places, 4)
    raw = made.eval()(features(info))
    assert raw["logits"].shape == (2, places, 3)
    assert raw["boxes"].shape == (2, places, 4)


@pytest.mark.parametrize(
    ("size", "width", "queries"), [("nano", 128, 100), ("small", 192, 200), ("base", 256, 300)]
)
def test_sizes(size, width, queries):
    made = head(size=size)
    assert made.shape.num_queries == queries
    assert made.classes.in_features == width


def test_own_numbers():
    made = head(num_queries=7, num_groups=2, num_layers=1)
    assert made.train()(features(PLAIN))["logits"].shape == (2, 2, 2, 7, 3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": "huge"}, r"size is 'huge'\. Choices: nano, small, base"),
        ({"num_queries": 0}, r"num_queries is 0\. Give 1 or more \(--model\.head\.num_queries\)"),
    ],
)
def test_arguments_outside_their_range(arguments, match):
    with pytest.raises(ValueError, match=match):
        DetrHead(**arguments)


def test_training_starts_without_a_flood_of_objects():
    scores = head().eval()(features(PLAIN))["logits"].sigmoid()
    assert scores.mean() < 0.05


def test_groups_do_not_see_each_other():
    """With the other groups' queries changed, a group answers as before."""
    made = head(num_groups=3).train()
    before = made(features(PLAIN))
    with torch.no_grad():
        made.queries[1:] += 1
    after = made(features(PLAIN))
    torch.testing.assert_close(after["logits"][:, :, 0], before["logits"][:, :, 0])
    assert not torch.allclose(after["logits"][-1, :, 1], before["logits"][-1, :, 1])


def test_the_first_group_answers():
    made = head()
    with torch.no_grad():
        training = made.train()(features(PLAIN))
        answers = made.eval()(features(PLAIN))
    torch.testing.assert_close(answers["logits"], training["logits"][-1, :, 0])
    torch.testing.assert_close(answers["boxes"], training["boxes"][-1, :, 0])


def test_every_weight_learns():
    made = head(PYRAMID).train()
    raw = made(features(PYRAMID))
    (raw["logits"].square().sum() + raw["boxes"].square().sum()).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []


def test_half_precision_keeps_boxes_exact():
    made = head().train()
    target = Objects(torch.full((1, 4), 0.4), torch.tensor([1]), torch.tensor([1, 0]))
    with torch.autocast("cpu", torch.bfloat16):
        raw = made(features(PLAIN))
        loss = sum(DetectionLoss()(raw, {"target": target}).values())
    loss.backward()
    assert raw["boxes"].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in made.parameters())


def test_an_image_alone_and_in_a_batch():
    made = head().eval()
    both = features(PLAIN)
    one = Features(both.pooled, both.tokens, tuple(m[1:] for m in both.maps))
    with torch.no_grad():
        torch.testing.assert_close(
            made(one)["boxes"][0], made(both)["boxes"][1], atol=1e-5, rtol=1e-5
        )


def test_boxes_move_by_their_reference():
    reference = torch.tensor([[0.5, 0.4, 0.2, 0.1]])
    torch.testing.assert_close(move_boxes(reference, torch.zeros(1, 4)), reference)
    delta = torch.tensor([[0.5, -1.0, np.log(2), np.log(0.5)]], dtype=torch.float32)
    torch.testing.assert_close(move_boxes(reference, delta), torch.tensor([[0.6, 0.3, 0.4, 0.05]]))
    assert move_boxes(reference, torch.full((1, 4), 1e4)).isfinite().all()


def test_embedding_tells_boxes_apart():
    first = embed_boxes(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), 16)
    assert first.shape == (1, 64)
    assert (first - embed_boxes(torch.tensor([[0.1, 0.2, 0.3, 0.41]]), 16)).abs().max() > 0.01


def test_gathered_points_are_sampled_points():
    torch.manual_seed(0)
    values = torch.randn(2, 12 * 9, 4, 8)
    points = torch.rand(2, 7, 4, 3, 2) * 1.6 - 0.3  # some outside of the map
    weights = torch.rand(2, 7, 4, 3).softmax(-1)
    sampled = sample_points(values, points, weights, (12, 9))
    torch.testing.assert_close(
        gather_points(values, points, weights, (12, 9)), sampled, atol=1e-5, rtol=1e-5
    )


def test_attention_looks_around_its_box():
    torch.manual_seed(0)
    attention = DeformableAttention(32, 8, 4)
    memory = torch.zeros(1, 100, 32)
    memory[0, 55] = 5.0  # row 5, column 5 of 10 x 10
    queries = torch.randn(1, 2, 32)
    boxes = torch.tensor([[[0.55, 0.55, 0.3, 0.3], [0.1, 0.1, 0.1, 0.1]]])
    with torch.no_grad():
        seen = attention(queries, boxes, memory, (10, 10))
    assert seen[0, 0].abs().sum() > 10 * seen[0, 1].abs().sum()


@pytest.mark.parametrize(("stride", "side"), [(8, 16), (16, 8), (32, 4)])
def test_projector_joins_strides(stride, side):
    projector = Projector((16, 32, 64), (8, 16, 32), 24, stride, 1)
    assert projector(features(PYRAMID).maps).shape == (2, 24, side, side)


def test_decoded_boxes_lie_in_the_original():
    logits = torch.full((1, 2, 3), -9.0)
    logits[0, 1, 2], logits[0, 0, 0] = 2.0, 1.0
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.9, 0.5, 0.4, 1.0]]])
    # The input covers x from -50 to 150 and y from 0 to 200 of an image of 100 x 200.
    geometry = torch.tensor([[-50.0, 0.0, 200.0, 200.0, 100.0, 200.0]])
    answer = DetrHead().decode({"logits": logits, "boxes": boxes}, geometry)
    assert answer["labels"].tolist() == [[2, 0]]
    torch.testing.assert_close(answer["scores"], torch.tensor([[2.0, 1.0]]).sigmoid())
    expected = torch.tensor([[[90.0, 0.0, 100.0, 200.0], [30.0, 60.0, 70.0, 140.0]]])
    torch.testing.assert_close(answer["boxes"], expected)


def test_a_query_may_answer_with_two_classes():
    logits = torch.tensor([[[3.0, 2.0, -9.0], [-9.0, -9.0, -9.0]]])
    answer = DetrHead().decode({"logits": logits, "boxes": torch.full((1, 2, 4), 0.5)})
    assert answer["labels"].tolist() == [[0, 1]]


class Whole(torch.nn.Module):
    def __init__(self, backbone, made):
        super().__init__()
        self.backbone, self.head = backbone, made

    def forward(self, images, geometry):
        return self.head.decode(self.head(self.backbone(images)), geometry)


@pytest.mark.slow  # a bundle of a detector is made and compared in tests/tasks/test_detection.py
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 1, "num_heads": 3}),
        ("test_efficientnet", {}),
    ],
)
def test_graph_answers_as_torch_for_any_batch(name, arguments, tmp_path):
    torch.manual_seed(0)
    backbone = Backbone(name, pretrained=False, image_size=(64, 96), arguments=arguments)
    backbone.select_outputs(DetrHead.uses)
    made = DetrHead(num_queries=20, num_groups=2, num_layers=2)
    made.prepare(backbone.info, ("a", "b"))
    whole = Whole(backbone, made).eval()
    images, rows = torch.randn(2, 3, 64, 96), torch.tensor([[0.0, 0.0, 96.0, 64.0, 96.0, 64.0]] * 2)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        whole,
        (images, rows),
        dynamic_shapes=(batch, batch),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    assert "GridSample" not in {node.op_type for node in program.model.graph.all_nodes()}
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_inputs()]
    for number in (1, 3):
        images, given = torch.randn(number, 3, 64, 96), rows[:1].expand(number, -1)
        with torch.no_grad():
            expected = whole(images, given)
        found = session.run(None, dict(zip(names, (images.numpy(), given.numpy()), strict=True)))
        # In the order of their scores, which differ in the last digit; boxes of near equal scores may change places.
        np.testing.assert_allclose(found[2], expected["scores"], atol=1e-5)
        np.testing.assert_allclose(
            np.sort(found[0].sum(-1)), np.sort(expected["boxes"].sum(-1)), atol=1e-2
        )
