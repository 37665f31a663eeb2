"""Tiny bundles made by hand: one finds three boxes in every picture, the other says a label besides."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.runtime import toy

# Shares of the picture, score and class of what is found everywhere.
SHARES = ((0.1, 0.2, 0.5, 0.6), (0.6, 0.5, 0.9, 0.9), (0.0, 0.0, 0.3, 0.3))
SCORES, CLASSES = (0.9, 0.5, 0.1), (2, 0, 0)
SCENES = ("indoor", "outdoor")
SCENE_SCORES = (0.25, 0.75)


def contract(*, heads=False):
    found = {**toy.CONTRACT, "task": "detection"}
    if not heads:
        return found
    scene = {"task": "classification", "labels": list(SCENES)}
    things = {"task": "detection", "labels": found["labels"]}
    both = {"scene": scene, "things": things}
    return {**found, "task": "several", "labels": list(both), "heads": both}


def build(folder, *, heads=False):
    """Write a whole bundle and return its folder; with `heads` it has two."""
    folder.mkdir()
    values = contract(heads=heads)
    metadata = json.dumps(values)
    _save_preprocess(folder / "preprocess.onnx", metadata)
    _save_model(folder / "model.onnx", metadata, heads)
    (folder / "parity.json").write_text("{}\n")
    (folder / "card.md").write_text("# Toy\n")
    (folder / "golden").mkdir()
    (folder / "golden" / "golden.json").write_text('{"tolerance": 1e-3, "images": []}')
    toy.write_vfm_json(folder, values)
    return folder


def _save_preprocess(path, metadata):
    node = helper.make_node
    nodes, constants = toy.preprocess_nodes()
    nodes += [
        node("Shape", ["image"], ["shape"], end=2),
        node("Cast", ["shape"], ["sides"], to=TensorProto.FLOAT),
        node("Gather", ["sides", "turned"], ["extent"]),
        node("Concat", ["corner", "extent", "extent"], ["row"], axis=0),
        node("Unsqueeze", ["row", "first"], ["geometry"]),
    ]
    constants += [
        toy._const("turned", np.array([1, 0])),
        toy._const("corner", np.zeros(2, "float32")),
    ]
    image = ("image", TensorProto.UINT8, ["H", "W", 3])
    pixels = ("pixels", TensorProto.UINT8, [1, toy.SIDE, toy.SIDE, 3])
    geometry = ("geometry", TensorProto.FLOAT, [1, 6])
    toy.save_graph(path, nodes, constants, image, [pixels, geometry], metadata)


def _nodes(prefix):
    node = helper.make_node
    return [
        node("Gather", ["geometry", "places"], ["sides"], axis=1),
        node("Unsqueeze", ["sides", "one"], ["wide"]),
        node("Mul", ["wide", "shares"], [f"{prefix}boxes"]),
        node("Mul", ["sides", "zero"], ["nothing"]),
        node("ReduceSum", ["nothing", "one"], ["none"], keepdims=1),
        node("Add", ["none", "classes"], ["whole"]),
        node("Cast", ["whole"], [f"{prefix}labels"], to=TensorProto.INT64),
        node("Add", ["none", "likely"], [f"{prefix}scores"]),
        node("Add", ["none", "scenes"], ["scene.scores"]),
    ]


def _save_model(path, metadata, heads):
    value, info = toy._const, helper.make_tensor_value_info
    prefix = "things." if heads else ""
    constants = [
        value("places", np.array([2, 3, 2, 3])),
        value("one", np.array([1])),
        value("zero", np.float32(0)),
        value("shares", np.array([SHARES], "float32")),
        value("classes", np.array([CLASSES], "float32")),
        value("likely", np.array([SCORES], "float32")),
        value("scenes", np.array([SCENE_SCORES], "float32")),
    ]
    inputs = [
        info("pixels", TensorProto.UINT8, ["N", toy.SIDE, toy.SIDE, 3]),
        info("geometry", TensorProto.FLOAT, ["N", 6]),
    ]
    outputs = [info("scene.scores", TensorProto.FLOAT, ["N", len(SCENES)])] if heads else []
    outputs += [
        info(f"{prefix}boxes", TensorProto.FLOAT, ["N", len(SCORES), 4]),
        info(f"{prefix}labels", TensorProto.INT64, ["N", len(SCORES)]),
        info(f"{prefix}scores", TensorProto.FLOAT, ["N", len(SCORES)]),
    ]
    graph = helper.make_graph(_nodes(prefix), "model", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"vfm": metadata})
    onnx.save(model, path)
