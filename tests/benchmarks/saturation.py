"""Products in 8 bits on CPUs without VNNI: the error of one matrix product by the settings of ONNX Runtime's quantizer.

    python tests/benchmarks/saturation.py DIR
    qemu-x86_64-static -cpu Haswell python tests/benchmarks/saturation.py DIR --answer

The first writes the models to a folder and answers on this machine. The second answers again, with numpy and
onnxruntime alone (PYTHONPATH names the environment's packages), on a processor that QEMU emulates: one that adds two
products of 8 bits in 16 bits, which saturate. Inputs and weights are uniform, so that many sums are large.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime

SIDES = {
    "int8": {},
    "int8, reduce_range (ours)": {"reduce_range": True},
    "uint8": {"weight_type": "QUInt8"},
}


def write_models(folder: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    random = np.random.default_rng(0)
    weight = random.uniform(-1, 1, (384, 384)).astype(np.float32)
    np.save(folder / "x.npy", random.uniform(0.5, 1, (64, 384)).astype(np.float32))
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        m (float[n, 384] x) => (float[n, 384] y) { y = MatMul(x, w) }""")
    model.graph.node[0].name = "product"
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, folder / "fp32.onnx")
    for number, settings in enumerate(SIDES.values()):
        kind = QuantType[settings.get("weight_type", "QInt8")]
        options = {**settings, "weight_type": kind, "per_channel": True}
        quantize_dynamic(folder / "fp32.onnx", folder / f"{number}.onnx", **options)


def answer(folder: Path) -> None:
    inputs = {"x": np.load(folder / "x.npy")}

    def run(name: str) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        return onnxruntime.InferenceSession(folder / name, options).run(None, inputs)[0]

    expected = run("fp32.onnx")
    for number, side in enumerate(SIDES):
        error = np.linalg.norm(run(f"{number}.onnx") - expected) / np.linalg.norm(expected)
        print(json.dumps({"name": side, "relative error": round(float(error), 4)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--answer", action="store_true", help="answer by models written before")
    options = parser.parse_args()
    if not options.answer:
        options.folder.mkdir(parents=True, exist_ok=True)
        write_models(options.folder)
    answer(options.folder)


if __name__ == "__main__":
    main()
