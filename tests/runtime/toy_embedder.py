"""A tiny bundle that embeds: colors of a 4 x 4 grid, less the mean of a gray picture."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from PIL import Image

from tests.runtime import toy

WIDTH = 4 * 4 * 3
CONTRACT = {
    **toy.CONTRACT,
    "task": "embedding",
    "labels": ["embedding"],
    "embedding": {
        "output": "embedding",
        "source": "pooled",
        "normalize": False,
        "fingerprint": "0123456789abcdef",
    },
    "format": 2,
}


def build(folder: Path, fingerprint: str = CONTRACT["embedding"]["fingerprint"]) -> Path:
    """Write the bundle and return its folder."""
    folder.mkdir(parents=True)
    contract = {**CONTRACT, "embedding": {**CONTRACT["embedding"], "fingerprint": fingerprint}}
    metadata = json.dumps(contract)
    toy.save_preprocess(folder / "preprocess.onnx", metadata)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["chw"], ["grid"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["grid"], ["flat"], axis=1),
        helper.make_node("Div", ["flat", "high255"], ["unit"]),
        helper.make_node("Sub", ["unit", "half"], ["embedding"]),
    ]
    constants = [toy._const("high255", np.float32(255)), toy._const("half", np.float32(0.5))]
    pixels = ("pixels", TensorProto.UINT8, ["N", toy.SIDE, toy.SIDE, 3])
    answer = ("embedding", TensorProto.FLOAT, ["N", WIDTH])
    toy.save_graph(folder / "model.onnx", nodes, constants, pixels, [answer], metadata)
    write_pictures(folder / "golden", (200, 40, 40), 2)
    toy.write_vfm_json(folder, contract)
    return folder


def paint(color, number: int, seed: int = 0) -> list[np.ndarray]:
    """Pictures that are noise around a color, uint8 [24, 32, 3] each."""
    random = np.random.default_rng([seed, *color])
    noise = random.integers(-60, 61, (number, 24, 32, 3))
    return list(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8))


def write_pictures(folder: Path, color, number: int, seed: int = 0) -> list[Path]:
    """Write such pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, pixels in enumerate(paint(color, number, seed)):
        paths.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths
