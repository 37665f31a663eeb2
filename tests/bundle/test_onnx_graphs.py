"""Graphs of several heads on one backbone, with temperatures, references and attention as one operator."""

import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from packaging.version import Version
from vfm_runtime.bundle.contract import Contract

from tests.conftest import DAVIT
from tests.tasks.tiny import VIT
from vfm.bundle.errors import ExportError
from vfm.bundle.onnx_graphs import OPSETS, ExportedModel, write_model
from vfm.bundle.ood import Reference
from vfm.models.heads import AttentionPoolHead, DetrHead, MLPHead
from vfm.models.heads.head import Head
from vfm.tasks import ClassificationTask, DetectionTask

SIDE = 32
SHALLOW = VIT | {"depth": 1}
DETR = {"num_queries": 5, "num_layers": 1}
TEMPERATURES = {"colour": 2.0, "things": 0.5, "boxes": 3.0, "texture": 1.0}


def rules(temperature=1.0, reference=False):
    return {
        "temperature": temperature,
        "thresholds": None,
        "max_distance": None,
        "reference": reference,
    }


def make(head=None, labels=("a", "b", "c"), kind=ClassificationTask, **changes):
    torch.manual_seed(0)
    settings = {"pretrained": False, "image_size": SIDE, "fit": "squash", "backbone_args": SHALLOW}
    settings |= {"backbone": "vit_tiny_patch16_224", "adapt": "linear"} | changes
    task = kind(head=head, **settings)
    task.head.prepare(task.backbone.info, labels)
    for parameter in task.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return task.eval()


def detector(**changes):
    return make(DetrHead(**DETR), ("cup", "pen"), DetectionTask, **changes)


def contract_of(tasks, **said):
    one = next(iter(tasks.values()))
    given = {
        name: {"task": t.kind, "labels": t.labels, "rules": said.get(name)}
        for name, t in tasks.items()
    }
    several = "" not in tasks
    return Contract(
        task="multi_head" if several else one.kind,
        labels=tuple(tasks) if several else one.labels,
        preprocess=one.preprocess.to_dict(),
        backbone="vit",
        license=None,
        versions={},
        rules=None if several else said.get("rules"),
        heads=given if several else None,
    )


def some_reference(width, k=4):
    random = np.random.default_rng(0)
    directions, _ = np.linalg.qr(random.normal(size=(width, width)))
    axes = directions[:, :k].T / np.linspace(2, 0.5, k)[:, None]
    mean = random.normal(size=width) / 10
    return Reference(mean, axes, 3.0)


def inputs_of(task, count):
    random = np.random.default_rng(count)
    size = task.preprocess.size
    pixels = random.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    rows = [[0.0, 0.0, size[1], size[0], 300.0, 200.0]] * count
    return {"pixels": pixels, "geometry": np.array(rows, np.float32)}


def run(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    outputs = session.run(None, {name: inputs[name] for name in names})
    return dict(zip([port.name for port in session.get_outputs()], outputs, strict=True))


def by_torch(task, inputs, temperature=1.0):
    """What a task answers alone, its logits divided by a temperature."""
    with torch.inference_mode():
        raw = task(torch.from_numpy(inputs["pixels"]))
        raw["logits"] = raw["logits"] / temperature
        geometry = torch.from_numpy(inputs["geometry"]) if task.head.needs_geometry else None
        return {name: value.numpy() for name, value in task.head.decode(raw, geometry).items()}


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def written(tasks, path):
    """One graph of several heads with their temperatures and a reference."""
    said = {name: rules(TEMPERATURES[name], reference=True) for name in tasks}
    contract = contract_of(tasks, **said)
    reference = some_reference(tasks["colour"].backbone.info.width)
    before = [task.backbone.__dict__["_indices"] for task in tasks.values()]
    write_model(path, contract, tasks, 20, reference=reference)
    return SimpleNamespace(
        tasks=tasks, contract=contract, reference=reference, path=path, before=before
    )


def require_parity(several, name, count):
    inputs = inputs_of(several.tasks[name], count)
    found = run(several.path, inputs)
    for output, expected in by_torch(several.tasks[name], inputs, TEMPERATURES[name]).items():
        given = found[f"{name}.{output}"]
        assert given.shape == expected.shape
        np.testing.assert_allclose(given, expected, atol=2e-3 if output == "boxes" else 1e-5)


def ports_of(several):
    session = onnxruntime.InferenceSession(str(several.path), providers=["CPUExecutionProvider"])
    inputs, outputs = several.contract.ports()
    found = {port.name: port.type for port in session.get_outputs()}
    assert found == {name: f"tensor({kind})" for name, kind in outputs.items()}
    assert list(found) == list(outputs)
    assert [port.name for port in session.get_inputs()] == list(inputs)
    return list(inputs), list(outputs)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    tasks = {
        "colour": make(),
        "things": make(MLPHead(8), ("cup", "pen"), multilabel=True),
        "texture": make(AttentionPoolHead(2), ("wool", "wood")),
    }
    return written(tasks, tmp_path_factory.mktemp("several") / "model.onnx")


def test_ports_are_those_of_the_contract(several):
    assert ports_of(several) == (
        ["pixels"],
        ["colour.scores", "things.scores", "texture.scores", "components", "distances"],
    )


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", ["colour", "things", "texture"])
def test_each_head_answers_as_alone(several, name, count):
    require_parity(several, name, count)


@pytest.mark.slow
def test_a_detector_among_others(tmp_path):
    # The head that needs most of the backbone comes last, and the first does not pool.
    tasks = {"boxes": detector(), "colour": make()}
    several = written(tasks, tmp_path / "model.onnx")
    boxes = ["boxes.boxes", "boxes.labels", "boxes.scores"]
    assert ports_of(several) == (
        ["pixels", "geometry"],
        [*boxes, "colour.scores", "components", "distances"],
    )
    for name in tasks:
        require_parity(several, name, 3)
    assert [task.backbone.__dict__["_indices"] for task in tasks.values()] == several.before


def test_a_detector_among_others_by_torch():
    tasks = {"boxes": detector(), "colour": make()}
    inputs = inputs_of(tasks["boxes"], 2)
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        found = ExportedModel(contract_of(tasks), tasks)(**tensors)
    for name, task in tasks.items():
        for output, expected in by_torch(task, inputs).items():
            np.testing.assert_allclose(found[f"{name}.{output}"], expected, atol=1e-6)


def test_the_backbone_runs_once(several):
    # Each pass of it begins with one convolution.
    inside = [n for n in onnx.load(several.path).graph.node if n.op_type == "Conv"]
    stem = [node for node in inside if "backbone.model.patch_embed.proj.weight" in node.input]
    assert len(stem) == 1


def test_the_tasks_stay_as_they_are(several):
    assert [task.backbone.__dict__["_indices"] for task in several.tasks.values()] == several.before
    assert all(not task.head.training for task in several.tasks.values())


def test_places_among_the_training_images(several):
    task, reference = several.tasks["colour"], several.reference
    inputs = inputs_of(task, 3)
    with torch.inference_mode():
        images = task.preprocess.normalize(torch.from_numpy(inputs["pixels"]))
        vectors = task.backbone(images).pooled.numpy().astype(np.float64)
    centred = vectors - reference.mean.numpy()
    components = centred @ reference.axes.T.astype(np.float64)
    back = reference.axes / np.square(np.float64(reference.axes)).sum(1, keepdims=True)
    rest = centred - components @ back
    squared = np.square(components).mean(1) + np.square(rest).sum(1) / reference.residual
    found = run(several.path, inputs)
    assert found["components"].dtype == found["distances"].dtype == np.float32
    np.testing.assert_allclose(found["components"], components, atol=1e-4)
    np.testing.assert_allclose(found["distances"], np.sqrt(squared / 2), rtol=1e-4)


def answers(task, inputs, place=None, **said):
    """What the exported module computes, by torch."""
    module = ExportedModel(contract_of({"": task}, rules=rules(**said)), {"": task}, place)
    with torch.inference_mode():
        found = module(*(torch.from_numpy(values) for values in inputs.values()))
    return {name: value.numpy() for name, value in found.items()}


def test_a_detector_is_placed_by_the_mean_of_its_tokens():
    task = detector()
    reference = some_reference(task.backbone.info.token_width)
    inputs = inputs_of(task, 2)
    with torch.inference_mode():
        images = task.preprocess.normalize(torch.from_numpy(inputs["pixels"]))
        vectors = task.backbone(images).tokens.mean(1).numpy()
    found = answers(task, inputs, reference, reference=True)
    assert list(found) == ["boxes", "labels", "scores", "components", "distances"]
    expected = (vectors - reference.mean.numpy()) @ reference.axes.T
    np.testing.assert_allclose(found["components"], expected, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.25, 4.0])
@pytest.mark.parametrize("multilabel", [False, True])
def test_temperature_of_one_head(multilabel, temperature):
    task = make(multilabel=multilabel)
    inputs = inputs_of(task, 3)
    found = answers(task, inputs, temperature=temperature)
    assert list(found) == ["scores"]
    with torch.inference_mode():
        logits = task(torch.from_numpy(inputs["pixels"]))["logits"] / temperature
    expected = logits.sigmoid() if multilabel else logits.softmax(-1)
    np.testing.assert_allclose(found["scores"], expected, atol=1e-6)
    assert np.abs(found["scores"] - answers(task, inputs)["scores"]).max() > 0.05


class OwnHead(Head):
    """A head of one's own, which gives no logits."""

    uses = ("pooled",)

    def build(self, info, num_labels):
        self.linear = torch.nn.Linear(info.width, num_labels)

    def forward(self, features):
        return {"odds": self.linear(features.pooled).exp()}

    def decode(self, raw, geometry=None):
        return {"scores": raw["odds"] / raw["odds"].sum(-1, keepdim=True)}


def test_a_temperature_needs_logits():
    task = make(OwnHead())
    assert ExportedModel(contract_of({"": task}, rules=rules(1.0)), {"": task})
    with pytest.raises(ValueError, match=r"temperature is 2\.0, but OwnHead is not known to give"):
        ExportedModel(contract_of({"": task}, rules=rules(2.0)), {"": task})


def test_a_reference_is_given_where_it_is_promised():
    task = make()
    reference = some_reference(task.backbone.info.width)
    with pytest.raises(ValueError, match="there is no reference to measure them by"):
        ExportedModel(contract_of({"": task}, rules=rules(reference=True)), {"": task})
    with pytest.raises(ValueError, match="rules have 'reference' false"):
        ExportedModel(contract_of({"": task}), {"": task}, reference)


def test_heads_in_another_order_are_refused():
    tasks = {"a": make(), "b": make()}
    with pytest.raises(ValueError, match=r"has the heads \['a', 'b'\], the tasks are \['b', 'a'\]"):
        ExportedModel(contract_of(tasks), dict(reversed(tasks.items())))


def test_names_that_modules_have_themselves(tmp_path):
    tasks = {"keys": make(), "type": make(MLPHead(8), ("x", "y"))}
    write_model(tmp_path / "model.onnx", contract_of(tasks), tasks, 20)
    found = run(tmp_path / "model.onnx", inputs_of(tasks["keys"], 2))
    assert {name: value.shape for name, value in found.items()} == {
        "keys.scores": (2, 3),
        "type.scores": (2, 2),
    }


def test_adapters_are_merged_for_all_and_stay_in_the_tasks(tmp_path):
    tasks = {"a": make(adapt="effort"), "b": make(MLPHead(8), ("x", "y"), adapt="effort")}
    with torch.no_grad():
        for task in tasks.values():
            for name, parameter in task.backbone.named_parameters():
                if "effort_" in name:
                    parameter.add_(0.1)
    write_model(tmp_path / "model.onnx", contract_of(tasks), tasks, 20)
    inputs = inputs_of(tasks["a"], 2)
    found = run(tmp_path / "model.onnx", inputs)
    for name, task in tasks.items():
        assert any(".lora_" in n or ".effort_" in n for n, _ in task.backbone.named_parameters())
        expected = by_torch(task, inputs)["scores"]
        np.testing.assert_allclose(found[f"{name}.scores"], expected, atol=1e-5)
    names = [tensor.name for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert not [name for name in names if "effort" in name]


EVA = {"embed_dim": 32, "depth": 1, "num_heads": 2}
# Attention operators that are left at opset 23; DaViT's channel attention is written out in timm.
FUSED = {
    "vit": (lambda: make(), 1),
    "davit": (lambda: make(image_size=64, backbone="davit_tiny", backbone_args=DAVIT), 2),
    "eva": (lambda: make(backbone="vit_small_patch16_dinov3", backbone_args=EVA), 1),
    "detr": (detector, 2),
}


# Opset 20, the default, runs everywhere; what is asked for beyond it takes a newer runtime than the oldest.
needs_opset_23 = pytest.mark.skipif(
    Version(onnxruntime.__version__) < Version("1.23"), reason="this ONNX Runtime has no opset 23"
)


@needs_opset_23
@pytest.mark.parametrize("name", [*list(FUSED)[:-1], pytest.param("detr", marks=pytest.mark.slow)])
def test_attention_is_one_operator_from_opset_23_on(name, tmp_path):
    made, number = FUSED[name]
    task = made()
    inputs = inputs_of(task, 2)
    expected = by_torch(task, inputs)
    path = tmp_path / "model.onnx"
    write_model(path, contract_of({"": task}), {"": task}, 23)
    assert operators(path)["Attention"] == number
    for output, given in run(path, inputs).items():
        atol = 2e-3 if output == "boxes" else 1e-4
        np.testing.assert_allclose(given, expected[output], atol=atol)


@pytest.mark.parametrize("opset", [17, 26])
def test_an_opset_that_the_exporter_has_not_is_refused(opset, tmp_path):
    task = make()
    with pytest.raises(ExportError, match=f"opset is {opset}; choices are 18 to 25. 20 runs al"):
        write_model(tmp_path / "model.onnx", contract_of({"": task}), {"": task}, opset)


@needs_opset_23
def test_the_newest_opset_and_a_quiet_exporter(tmp_path, capfd, caplog):
    task = make(backbone="vit_small_patch16_dinov3", backbone_args=EVA)
    write_model(tmp_path / "model.onnx", contract_of({"": task}), {"": task}, OPSETS[-1])
    assert capfd.readouterr() == ("", "")
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    inputs = inputs_of(task, 2)
    found, expected = run(tmp_path / "model.onnx", inputs), by_torch(task, inputs)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)


def test_reference_outputs_of_training_vectors():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(4000, 12)) * np.linspace(3, 0.2, 12) + random.normal(size=12)
    mean = vectors.mean(0)
    _, sizes, directions = np.linalg.svd(vectors - mean, full_matrices=False)
    spread = sizes / np.sqrt(len(vectors))
    module = Reference(
        np.float32(mean), np.float32(directions[:5] / spread[:5, None]), (spread[5:] ** 2).sum()
    )
    found = module(torch.from_numpy(vectors))
    assert found["components"].dtype == found["distances"].dtype == torch.float32
    np.testing.assert_allclose(found["components"].std(0), 1, atol=0.01)
    assert found["distances"].square().mean() == pytest.approx(1, abs=0.01)
    # Outside of the axes counts as well as along them.
    for direction in (directions[0], directions[-1]):
        far = module(torch.from_numpy(np.float32(mean + 30 * direction)[None]))["distances"]
        assert far > 3
    assert module(torch.from_numpy(np.float32(mean)[None]))["distances"] < 1e-3
