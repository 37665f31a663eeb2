"""A tiny bundle made by hand, without torch and without the code under test."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from skimage import data

LABELS = ("ant", "bee", "cat")
SIDE = 16
WEIGHTS = np.random.default_rng(7).normal(0, 0.2, (SIDE * SIDE * 3, len(LABELS))).astype("float32")
CONTRACT = {
    "task": "classification",
    "labels": list(LABELS),
    "preprocess": {"size": [SIDE, SIDE], "mode": "squash", "scale": 0.5},
    "backbone": "toy",
    "license": "Apache-2.0",
    "versions": {"vfm": "0.1.0", "torch": "2.11"},
    "format": 1,
}


def photos() -> list[np.ndarray]:
    """Real photos of different sizes and shapes."""
    return [data.astronaut()[:200, :300], data.coffee()[50:150, 100:180], data.chelsea()]


def softmax(raw: np.ndarray) -> np.ndarray:
    power = np.exp(raw - raw.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


def expected_scores(pixels: np.ndarray) -> np.ndarray:
    """What model.onnx must answer, in numpy."""
    flat = pixels.reshape(len(pixels), -1).astype("float32") / 255 - 0.5
    return softmax(flat @ WEIGHTS)


def _const(name, values):
    return numpy_helper.from_array(np.asarray(values), name)


def preprocess_nodes():
    nodes = [
        helper.make_node("Transpose", ["image"], ["chw"], perm=[2, 0, 1]),
        helper.make_node("Cast", ["chw"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "first"], ["one"]),
        helper.make_node("Resize", ["one", "", "", "sizes"], ["small"], mode="linear", antialias=1),
        helper.make_node("Round", ["small"], ["whole"]),
        helper.make_node("Clip", ["whole", "low", "high"], ["clamped"]),
        helper.make_node("Cast", ["clamped"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["pixels"], perm=[0, 2, 3, 1]),
    ]
    constants = [
        _const("first", np.array([0], "int64")),
        _const("sizes", np.array([1, 3, SIDE, SIDE], "int64")),
        _const("low", np.float32(0)),
        _const("high", np.float32(255)),
    ]
    return nodes, constants


def _model_nodes(weights):
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"], axis=1),
        helper.make_node("Div", ["flat", "high255"], ["unit"]),
        helper.make_node("Sub", ["unit", "half"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["scores"], axis=1),
    ]
    constants = [
        _const("high255", np.float32(255)),
        _const("half", np.float32(0.5)),
        _const("weights", weights),
    ]
    return nodes, constants


def save_graph(path, nodes, constants, source, answers, metadata, **options):
    value = helper.make_tensor_value_info
    made = [value(*answer) for answer in answers]
    graph = helper.make_graph(nodes, path.stem, [value(*source)], made, constants)
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if metadata is not None:
        helper.set_model_props(model, {"vfm": metadata})
    onnx.checker.check_model(model)
    onnx.save(model, path, **options)


def save_preprocess(path, metadata):
    image = ("image", TensorProto.UINT8, ["H", "W", 3])
    pixels = ("pixels", TensorProto.UINT8, [1, SIDE, SIDE, 3])
    save_graph(path, *preprocess_nodes(), image, [pixels], metadata)


def save_model(path, metadata, *, weights=WEIGHTS, **options):
    pixels = ("pixels", TensorProto.UINT8, ["N", SIDE, SIDE, 3])
    scores = ("scores", TensorProto.FLOAT, ["N", weights.shape[1]])
    save_graph(path, *_model_nodes(weights), pixels, [scores], metadata, **options)


def save_onefile(path, metadata, *, weights=WEIGHTS):
    (before, low), (after, high) = preprocess_nodes(), _model_nodes(weights)
    image = ("image", TensorProto.UINT8, ["H", "W", 3])
    scores = ("scores", TensorProto.FLOAT, [1, len(LABELS)])
    save_graph(path, before + after, low + high, image, [scores], metadata)


def save_golden(folder):
    folder.mkdir()
    session = onnxruntime.InferenceSession(
        str(folder.parent / "preprocess.onnx"), providers=["CPUExecutionProvider"]
    )
    images = []
    for index, photo in enumerate(photos()[:2]):
        Image.fromarray(photo).save(folder / f"{index:03}.png")
        row = expected_scores(session.run(None, {"image": photo})[0])[0]
        label = LABELS[int(row.argmax())]
        images.append({"file": f"{index:03}.png", "scores": row.tolist(), "label": label})
    text = json.dumps({"tolerance": 1e-3, "images": images})
    (folder / "golden.json").write_text(text)


def write_vfm_json(folder, contract=CONTRACT):
    """Write the manifest independently of vfm_runtime.bundle.manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name != "vfm.json"
    }
    text = json.dumps({"contract": contract, "files": files}, indent=1)
    (folder / "vfm.json").write_text(text)


def build(folder: Path, *, onefile: bool = True, external: bool = False) -> Path:
    """Write a whole bundle and return its folder."""
    folder.mkdir(parents=True)
    metadata = json.dumps(CONTRACT)
    save_preprocess(folder / "preprocess.onnx", metadata)
    options = {}
    if external:
        options = {"save_as_external_data": True, "location": "model.onnx.data"}
        options["size_threshold"] = 1024
    save_model(folder / "model.onnx", metadata, **options)
    if onefile:
        save_onefile(folder / "onefile.onnx", metadata)
    (folder / "parity.json").write_text('{"max_difference": 1e-6}\n')
    (folder / "card.md").write_text("# Toy\n")
    save_golden(folder / "golden")
    write_vfm_json(folder)
    return folder
