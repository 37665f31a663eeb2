"""A tiny bundle with two heads, rules of confidence and a reference, in two precisions; made by hand, without torch."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from tests.runtime import toy

HEADS = {
    "animal": {
        "task": "classification",
        "labels": list(toy.LABELS),
        "rules": {
            "temperature": 1.0,
            "thresholds": [0.9, 0.0, 0.0],
            "max_distance": 10.0,
            "reference": True,
        },
    },
    "traits": {"task": "multilabel", "labels": ["furred", "winged"]},
}
CONTRACT = {
    **toy.CONTRACT,
    "task": "several",
    "labels": list(HEADS),
    "heads": HEADS,
}
TRAITS = np.random.default_rng(8).normal(0, 0.2, (toy.SIDE**2 * 3, 2)).astype("float32")
# The int8 graph of this bundle answers a little otherwise, so that it can be told which one runs.
SHIFT = 0.01


def save_model(path: Path, metadata: str, shift: float = 0.0) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    model (uint8[N, {toy.SIDE}, {toy.SIDE}, 3] pixels)
        => (float[N, 3] a, float[N, 2] b, float[N, 2] components, float[N] distances) {{
        floats = Cast<to = 1>(pixels)
        flat = Flatten<axis = 1>(floats)
        high = Constant<value_float = 255.0>()
        half = Constant<value_float = 0.5>()
        unit = Div(flat, high)
        centred = Sub(unit, half)
        first = MatMul(centred, weights)
        probable = Softmax<axis = 1>(first)
        shift = Constant<value_float = {shift}>()
        a = Add(probable, shift)
        components = MatMul(centred, traits)
        b = Sigmoid(components)
        axis = Constant<value_ints = [1]>()
        distances = ReduceL2<keepdims = 0>(components, axis)
    }}
    """
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(toy.WEIGHTS, "weights"),
            onnx.numpy_helper.from_array(TRAITS, "traits"),
        ]
    )
    renamed = {"a": "animal.scores", "b": "traits.scores"}
    for node in model.graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for port in model.graph.output:
        port.name = renamed.get(port.name, port.name)
    helper.set_model_props(model, {"vfm": metadata})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def row(model, file: Path) -> dict:
    """What golden.json says of an image, by what the model answers."""
    answer = model.predict(file)
    animal, traits = answer["animal"], answer["traits"]
    return {
        "file": file.name,
        "heads": {
            "animal": {
                "label": animal.label,
                "scores": animal.scores.tolist(),
                "distances": animal.distance,
            },
            "traits": {
                "label": traits.label,
                "scores": traits.scores.tolist(),
                "distances": traits.distance,
            },
        },
    }


def build(folder: Path) -> Path:
    """Write a whole bundle and return its folder."""
    import vfm_runtime

    folder.mkdir(parents=True)
    metadata = json.dumps(CONTRACT)
    toy.save_preprocess(folder / "preprocess.onnx", metadata)
    save_model(folder / "model.onnx", metadata)
    save_model(folder / "model.int8.onnx", metadata, SHIFT)
    toy.save_golden(folder / "golden")
    toy.write_vfm_json(folder, CONTRACT)
    images = sorted((folder / "golden").glob("*.png"))
    golden = {}
    for precision in ("fp32", "int8"):
        model = vfm_runtime.load(folder, device="cpu", precision=precision)
        golden[precision] = [row(model, file) for file in images]
    text = json.dumps(
        {
            "tolerance": 1e-3,
            "images": golden["fp32"],
            "precisions": {"int8": {"tolerance": 1e-3, "images": golden["int8"]}},
        }
    )
    (folder / "golden" / "golden.json").write_text(text)
    toy.write_vfm_json(folder, CONTRACT)
    return folder
