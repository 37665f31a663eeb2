"""A tiny bundle that embeds: colors of a 4 x 4 grid, less the mean of a gray picture."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

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


TEXT = {"file": "tokenizer.json", "clean": "lower", "length": 8, "scale": 20.0, "marks": ["<end>"]}
COLORS = {"red": (200, 40, 40), "blue": (40, 40, 200), "green": (40, 200, 40)}


def write_text_tower(folder: Path, metadata: str) -> None:
    """A tower that knows the names of some colors: the vector of a text is the sum of theirs."""
    words = {"[PAD]": 0, "[UNK]": 1, **{name: 2 + i for i, name in enumerate(COLORS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(TEXT["length"])
    tokenizer.enable_padding(length=TEXT["length"])
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = np.zeros((len(words), WIDTH), np.float32)
    rows[2:] = np.repeat(np.array(list(COLORS.values())) / 255 - 0.5, 16, axis=1)
    rows[2:] /= np.linalg.norm(rows[2:], axis=1, keepdims=True)
    nodes = [
        helper.make_node("Gather", ["rows", "tokens"], ["each"]),
        helper.make_node("ReduceSum", ["each", "axis"], ["text_embedding"], keepdims=0),
    ]
    constants = [toy._const("rows", rows), toy._const("axis", np.array([1]))]
    tokens = ("tokens", TensorProto.INT64, ["N", TEXT["length"]])
    answer = ("text_embedding", TensorProto.FLOAT, ["N", WIDTH])
    toy.save_graph(folder / "text.onnx", nodes, constants, tokens, [answer], metadata)


def build(
    folder: Path,
    fingerprint: str = CONTRACT["embedding"]["fingerprint"],
    *,
    text: bool = False,
    **more,
) -> Path:
    """Write the bundle and return its folder."""
    folder.mkdir(parents=True)
    contract = {**CONTRACT, "embedding": {**CONTRACT["embedding"], "fingerprint": fingerprint}}
    contract |= {"tokenizer": {**TEXT, **more}} if text else {}
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
    if text:
        write_text_tower(folder, metadata)
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
