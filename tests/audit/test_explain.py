"""Attribution maps, and whether they say more than random ones."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.tiling import Tiling

from vfm.audit.attribution import compute_grad_cam, split_logit
from vfm.audit.deletion import score_map, score_random_maps
from vfm.audit.explain import (
    Answer,
    ExplainedPicture,
    choose_images,
    explain_pictures,
    list_answers,
    list_explanations,
)
from vfm.audit.explain_boxes import ABOUT_BOXES, list_box_pictures, require_gradients
from vfm.audit.kinds import KINDS, Outcomes
from vfm.audit.linear_graph import open_linear_graph
from vfm.audit.report import describe_coverage
from vfm.audit.source import AuditedModel, AuditError
from vfm.data.records import Record
from vfm.models.heads import DenseHead
from vfm.models.heads.classification import LinearHead, MLPHead
from vfm.tasks import ClassificationTask, DetectionTask
from vfm.tasks.predictor import TorchPredictor


def build(backbone, head=None):
    torch.manual_seed(0)
    task = ClassificationTask(backbone, head, pretrained=False, image_size=64)
    task.head.prepare(task.backbone.info, ("ant", "bee", "cat"))
    return task.eval()


def draw_pixels():
    return np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("normalizes", [False, True])
def test_contributions_of_places_sum_to_the_logit(normalizes):
    task = build("test_efficientnet")
    task.head.normalizes = normalizes
    task.head.center.fill_(0.1 if normalizes else 0.0)
    task.head.linear.bias.data.fill_(0.3)
    pixels = draw_pixels()
    with torch.inference_mode():
        logit = float(task(torch.from_numpy(pixels))["logits"][0, 2])
    parts = split_logit(task, pixels, 2)
    assert parts.shape == (2, 2)
    assert parts.sum() + 0.3 == pytest.approx(logit, abs=1e-5)


def test_no_contributions_where_the_head_is_not_linear_or_reads_a_class_token():
    assert split_logit(build("test_efficientnet", MLPHead()), draw_pixels(), 0) is None
    assert split_logit(build("test_vit"), draw_pixels(), 0) is None
    reads = LinearHead(reads="map_means")
    assert split_logit(build("test_efficientnet", reads), draw_pixels(), 0) is None


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit", "test_convnext"])
def test_grad_cam_has_a_value_for_each_place(backbone):
    task = build(backbone)
    for parameter in task.backbone.parameters():
        parameter.requires_grad_(False)
    cam = compute_grad_cam(task, draw_pixels(), 1)
    with torch.inference_mode():
        images = task.preprocess.normalize(torch.from_numpy(draw_pixels()))
        size = task.backbone(images).maps[-1].shape[-2:]
    assert cam.shape == tuple(size)
    assert cam.min() >= 0
    assert np.isfinite(cam).all()


def test_a_map_that_explains_nothing_shows_as_such():
    """The score is how bright one corner is: a map of the corner beats all random ones, one of the others does not."""
    pixels = np.full((32, 32, 3), 20, np.uint8)
    pixels[:8, :8] = 250

    def compute_scores(batch):
        return batch[:, :8, :8].mean(axis=(1, 2, 3)) / 255

    corner = np.zeros((4, 4), np.float32)
    corner[0, 0] = 1
    gains = [each.gain for each in score_random_maps((4, 4), pixels, compute_scores, seed=1)]
    right = score_map(corner, pixels, compute_scores)
    assert right.gain > max(gains)
    assert right.deletion < right.insertion
    assert score_map(-corner, pixels, compute_scores).gain < min(gains)
    row = "", "", "", 0.9, True, pixels, compute_scores
    maps = {"grad_cam": corner, "patches": np.zeros((4, 4), np.float32)}
    result, _ = explain_pictures([ExplainedPicture(*row, maps)], seed=1)
    explains = [each["explains"] for each in result["images"][0]["maps"].values()]
    # A map of one value puts the rows in from the top, which happens to begin with the corner.
    assert explains == [True, False]


def test_right_ones_and_the_most_confident_mistakes_are_chosen():
    right = np.array([True] * 6 + [False] * 4)
    confidence = np.array([0.9] * 6 + [0.5, 0.8, 0.6, 0.7])
    chosen = choose_images(right, confidence, 4)
    assert chosen[2:] == [7, 9]
    assert all(right[chosen[:2]])
    assert len(choose_images(right, confidence, 99)) == 10
    assert len(choose_images(np.array([True] * 5), np.ones(5), 4)) == 4
    result = {
        "images": [{}, {}],
        "maps": {"grad_cam": {"num_explaining": 1, "mean_gain": 0.25}},
        "random_gain": 0.0,
    }
    (sentence,) = list_explanations(result)
    assert sentence.startswith("Grad-CAM: more than all random maps for 1 of 2 images")


def test_of_several_labels_each_that_is_given_is_explained():
    given = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]], bool)
    target = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0]])
    scores = np.where(given, 0.8, 0.1)
    scores[2, 2] = 0.9
    outcomes = Outcomes([], [], [""] * 4, [""] * 4, target=target, scores=scores, asserted=given)
    # Of image 1 nothing is given; what image 0 lacks makes none of its labels wrong.
    answers = list_answers(outcomes, ("ant", "bee", "cat"), 9)
    assert [(a.image, a.label, a.right) for a in answers] == [
        *((0, 0, True), (0, 1, True), (3, 0, True)),
        *((2, 1, True), (2, 2, False)),
    ]
    assert answers[-1].score == 0.9
    outcomes.asserted = given & False
    assert list_answers(outcomes, ("ant", "bee", "cat"), 9) == []
    values = {"leaks": {"is_checked": False, "how": ""}, "metrics": {}, "unit": "images"}
    row = describe_coverage(values | {"num_images": 4, "num_skipped": 0}, {}, num_explained=0)[-1]
    assert (row["looked at"], row["how"][:30]) == ("NO", "nothing is above its threshold")


def test_a_box_is_explained_on_the_tile_in_which_it_was_found():
    torch.manual_seed(0)
    task = DetectionTask(
        "test_efficientnet", DenseHead(width=16, depth=1), pretrained=False, image_size=64
    )
    task.head.prepare(task.backbone.info, ("ant", "bee"))
    task.head.classes.weight.data.mul_(30)
    task.preprocess = task.preprocess.add_tiles(Tiling(64))
    predictor = TorchPredictor(task.eval())
    picture = np.random.default_rng(0).integers(0, 255, (64, 110, 3)).astype(np.uint8)
    boxes = predictor.predict(picture)
    label, score, corners = int(boxes.class_ids[0]), float(boxes.scores[0]), boxes.boxes[0]
    model = AuditedModel("a.ckpt", predictor, KINDS["detection"], SimpleNamespace(task=task))
    answer = Answer(0, "ant", label, score, True, corners)
    (one,) = list_box_pictures(model, [Record(picture, (), "0")], [answer])
    left = next(x for x in range(47) if (picture[:, x : x + 64] == one.pixels).all())
    assert one.corners == pytest.approx(corners - np.array([left, 0, left, 0]), abs=1e-3)
    assert one.compute_scores(one.pixels[None])[0] == pytest.approx(score, abs=1e-4)
    assert one.maps["box"].shape == (8, 8)
    assert one.maps["box"].max() > 0
    assert one.maps["box"].min() == 0
    result, _ = explain_pictures([one], about=ABOUT_BOXES)
    assert set(result["images"][0]["maps"]) == {"box"}
    model.checkpoint = None
    with pytest.raises(
        OptionError, match=r"--explain needs gradients to explain boxes, and a\.ckpt"
    ):
        require_gradients(model)


def write_graph(path, pool):
    """A graph of 1 x 1 convolution, pooling, centering and a linear layer."""
    rng = np.random.default_rng(0)
    arrays = {
        "conv": rng.normal(size=(5, 3, 1, 1)),
        "center": rng.normal(size=5),
        "weight": rng.normal(size=(2, 5)),
        "bias": np.array([0.5, -0.5]),
    }
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["pixels"], ["float"], to=onnx.TensorProto.FLOAT),
        make("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        make("Conv", ["nchw", "conv"], ["map"], strides=[4, 4]),
        make(pool, ["map"], ["mean"]),
        make("Flatten", ["mean"], ["flat"]),
        make("Sub", ["flat", "center"], ["centered"]),
        make("Gemm", ["centered", "weight", "bias"], ["logits"], transB=1),
        make("Softmax", ["logits"], ["scores"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [info("pixels", onnx.TensorProto.UINT8, [1, 16, 16, 3])],
        [info("scores", onnx.TensorProto.FLOAT, [1, 2])],
        [onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def test_contributions_of_a_bundle_sum_to_its_logit(tmp_path):
    write_graph(tmp_path / "model.onnx", "GlobalAveragePool")
    graph = open_linear_graph(tmp_path / "model.onnx")
    pixels = draw_pixels()[:, :16, :16]
    parts = graph.split_logit(pixels, 1)
    logits = graph.session.run(["logits"], {"pixels": pixels})[0]
    assert parts.shape == (4, 4)
    assert parts.sum() - 0.5 == pytest.approx(logits[0, 1], abs=1e-3)
    wrong = graph._replace(bias=graph.bias + 9)
    with pytest.raises(AuditError, match="miss its logit by 9"):
        wrong.split_logit(pixels, 1)
    # The largest value of a map is no sum over its places.
    write_graph(tmp_path / "model.onnx", "GlobalMaxPool")
    assert open_linear_graph(tmp_path / "model.onnx") is None
