"""A tiny deepfake bundle made by hand: the redder a crop, the more fake it is."""

import json

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from skimage import data

from tests.runtime import toy

CELLS = 4
CROP = {
    "source": "faces",
    "size": 64,
    "margin": 1.3,
    "policy": "largest",
    "detector": "mtcnn",
    "min_score": 0.9,
    "tiles": 5,
}
DECISION = {
    "num_frames": 4,
    "temperature": 2.0,
    "threshold": None,
    "real_below": None,
    "fpr": None,
    "num_reals": None,
    "calibration": None,
    "min_face": 40.0,
    "min_frames": 0.25,
    "min_sharpness": None,
    "max_distance": None,
    "max_spread": None,
}
GAIN = 20.0


def contract(crop=None, decision=None):
    rules = {"crop": {**CROP, **(crop or {})}, "decision": {**DECISION, **(decision or {})}}
    return {**toy.CONTRACT, "task": "deepfake", "labels": ["real", "fake"], "rules": rules}


def face_photo():
    """A portrait of 200 x 200 pixels whose face is about 90 pixels wide."""
    return data.astronaut()[:200, 125:325]


def reddened(image, share=0.5):
    """The same with less of green and blue: a fake to the toy."""
    changed = image.astype("float32")
    changed[..., 1:] *= 1 - share
    return changed.round().astype("uint8")


def expected(pixels):
    """What model.onnx must answer, in numpy: logits [N], heatmaps [N, 4, 4], distances [N]."""
    unit = pixels.astype("float32") / 255
    redness = unit[..., 0] - unit[..., 1]
    side = toy.SIDE // CELLS
    cells = redness.reshape(-1, CELLS, side, CELLS, side).mean((2, 4))
    logits = (redness.mean((1, 2)) - 0.25) * GAIN
    return logits, cells.clip(0, 1), unit.mean((1, 2, 3))


def _const(name, values):
    return numpy_helper.from_array(np.asarray(values), name)


def _nodes(gain):
    node = helper.make_node
    nodes = [
        node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        node("Div", ["floats", "high255"], ["unit"]),
        node("Split", ["unit"], ["red", "green", "blue"], axis=3, num_outputs=3),
        node("Sub", ["red", "green"], ["redness"]),
        node("ReduceMean", ["redness", "places"], ["mean"], keepdims=0),
        node("Sub", ["mean", "quarter"], ["centred"]),
        node("Mul", ["centred", "gain"], ["logits"]),
        node("Transpose", ["redness"], ["planes"], perm=[0, 3, 1, 2]),
        node("AveragePool", ["planes"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        node("Clip", ["pooled", "none", "all"], ["clipped"]),
        node("Squeeze", ["clipped", "channel"], ["heatmaps"]),
        node("ReduceMean", ["unit", "places"], ["distances"], keepdims=0),
    ]
    constants = [
        _const("high255", np.float32(255)),
        _const("places", np.array([1, 2, 3], "int64")),
        _const("quarter", np.float32(0.25)),
        _const("gain", np.float32(gain)),
        _const("none", np.float32(0)),
        _const("all", np.float32(1)),
        _const("channel", np.array([1], "int64")),
    ]
    return nodes, constants


ANSWERS = [
    ("logits", TensorProto.FLOAT, ["N"]),
    ("heatmaps", TensorProto.FLOAT, ["N", CELLS, CELLS]),
    ("distances", TensorProto.FLOAT, ["N"]),
]


def save_model(path, metadata, gain=GAIN):
    pixels = ("pixels", TensorProto.UINT8, ["N", toy.SIDE, toy.SIDE, 3])
    toy.save_graph(path, *_nodes(gain), pixels, ANSWERS, metadata)


def save_onefile(path, metadata):
    (before, low), (after, high) = toy.preprocess_nodes(), _nodes(GAIN)
    image = ("image", TensorProto.UINT8, ["H", "W", 3])
    answers = [(name, kind, [1, *shape[1:]]) for name, kind, shape in ANSWERS]
    toy.save_graph(path, before + after, low + high, image, answers, metadata)


def save_golden(folder, size):
    folder.mkdir()
    session = onnxruntime.InferenceSession(
        str(folder.parent / "preprocess.onnx"), providers=["CPUExecutionProvider"]
    )
    rows = []
    for index, photo in enumerate((face_photo(), reddened(face_photo()))):
        crop = np.array(Image.fromarray(photo[:160, 20:180]).resize((size, size)))
        Image.fromarray(crop).save(folder / f"{index:03}.png")
        logits, heatmaps, distances = expected(session.run(None, {"image": crop})[0])
        rows.append(
            {
                "file": f"{index:03}.png",
                "label": "fake" if logits[0] > 0 else "real",
                "reason": None,
                "score": float(1 / (1 + np.exp(-logits[0] / DECISION["temperature"]))),
                "logits": float(logits[0]),
                "heatmaps": heatmaps[0].tolist(),
                "distances": float(distances[0]),
            }
        )
    (folder / "golden.json").write_text(json.dumps({"tolerance": 1e-3, "images": rows}))


def build(folder, *, crop=None, decision=None, gain=GAIN):
    """Write a whole bundle and return its folder."""
    folder.mkdir(parents=True)
    values = contract(crop, decision)
    metadata = json.dumps(values)
    toy.save_preprocess(folder / "preprocess.onnx", metadata)
    save_model(folder / "model.onnx", metadata, gain)
    save_onefile(folder / "onefile.onnx", metadata)
    (folder / "parity.json").write_text("{}\n")
    (folder / "card.md").write_text("# Toy\n")
    save_golden(folder / "golden", values["rules"]["crop"]["size"])
    toy.write_vfm_json(folder, values)
    return folder
