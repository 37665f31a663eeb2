"""Tiny bundles made by hand: one finds three boxes in every picture, others say a label or embed the boxes besides."""

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


EMBEDDING = {
    "output": "box_embeddings",
    "source": "boxes",
    "normalize": False,
    "fingerprint": "00112233445566778899",
}


def contract(*, heads=False, embeds=False):
    found = {**toy.CONTRACT, "task": "detection"}
    if embeds:
        return {**found, "format": 2, "box_embedding": EMBEDDING}
    if not heads:
        return found
    scene = {"task": "classification", "labels": list(SCENES)}
    things = {"task": "detection", "labels": found["labels"]}
    both = {"scene": scene, "things": things}
    return {**found, "task": "several", "labels": list(both), "heads": both}


def build(folder, *, heads=False, embeds=False):
    """Write a whole bundle and return its folder; with `heads` it has two, with `embeds` its boxes have vectors."""
    folder.mkdir()
    values = contract(heads=heads, embeds=embeds)
    metadata = json.dumps(values)
    _save_preprocess(folder / "preprocess.onnx", metadata)
    _save_model(folder / "model.onnx", metadata, heads, embeds)
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


def _embed_boxes():
    """Nodes and constants that give the mean color within each box, less gray."""
    cover = np.zeros((len(SHARES), toy.SIDE, toy.SIDE), "float32")
    for index, (left, top, right, bottom) in enumerate(np.round(np.array(SHARES) * toy.SIDE)):
        cover[index, int(top) : int(bottom), int(left) : int(right)] = 1
    cover /= cover.sum(axis=(1, 2), keepdims=True)
    node = helper.make_node
    nodes = [
        node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        node("Reshape", ["floats", "cells"], ["colors"]),
        node("Sub", ["colors", "gray"], ["signed"]),
        node("MatMul", ["cover", "signed"], ["box_embeddings"]),
    ]
    constants = [
        toy._const("cells", np.array([-1, toy.SIDE**2, 3])),
        toy._const("gray", np.float32(127.5)),
        toy._const("cover", cover.reshape(1, len(SHARES), -1)),
    ]
    return nodes, constants


def _save_model(path, metadata, heads, embeds):
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
    nodes = _nodes(prefix)
    if embeds:
        more, values = _embed_boxes()
        nodes, constants = [*nodes, *more], [*constants, *values]
        outputs.append(info("box_embeddings", TensorProto.FLOAT, ["N", len(SCORES), 3]))
    graph = helper.make_graph(nodes, "model", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"vfm": metadata})
    onnx.save(model, path)
