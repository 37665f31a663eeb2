"""Formats of a bundle on CPU threads: torch eager, fp32, int8, and OpenVINO in bfloat16, for 1 and 8 images.

    python tests/benchmarks/precisions.py [--quick] [--models NAME ...] [--shared] [--accuracy] [--outliers DIR]

All sides answer from the same uint8 pixels to probabilities, in turns. The weights are random, on which time does not
depend. "quantize_dynamic" and, for convolutional nets, "quantize_static" are ONNX Runtime's own quantizers on the graph
as it is exported; our int8 takes the first for products, and for convolutions none. OpenVINO is measured where the
package `openvino` is installed. With --shared, a side has one thread and its processor time counts, for machines that
others use at the same time.

With --accuracy, two models are trained on Fashion-MNIST for a few minutes each and exported under a budget: what each
format is worth. With --outliers, outliers are planted in the model that `vfm demo --out DIR` trained: each LayerNorm
gives every 24th channel times as large, and the weights after it take it back; the answers in fp32 stay. The test
images are then answered in 8 bits with and without SmoothQuant.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fashion_mnist
import numpy as np
import onnx
import torch
from bundles import MODELS, make_bundle, new_task, pixels_of
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from PIL import Image
from sides import in_turns, report
from vfm_runtime import load
from vfm_runtime.bundle import providers
from vfm_runtime.bundle.contract import MODEL_FILE, PREPROCESS_FILE

from vfm.quantization.graph import Graph
from vfm.quantization.int8 import plan_int8
from vfm.quantization.int8_matmul import quantize_matmuls
from vfm.quantization.smoothquant import find_norms, scale_channels

CONV_NET = {"EfficientNet-Lite0": "tf_efficientnet_lite0"}


def openvino_model(path: Path, hint: str, threads: int) -> Callable[[Any], object]:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda pixels: compiled({"pixels": pixels})


def session_of(path: Path, threads: int = 2) -> Callable[[Any], object]:
    session = providers.open_session(path, "cpu", num_threads=threads)
    return lambda pixels: session.run(None, {"pixels": pixels})


def time_model(name: str, backbone: str, batches: list[int], rounds: int, shared: bool) -> None:
    threads = 1 if shared else 2
    torch.set_num_threads(threads)
    task = new_task(backbone)
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(task, Path(folder))
        int8 = Path(folder) / "int8.onnx"
        plan = plan_int8(bundle / MODEL_FILE, [{"pixels": pixels_of(4)}])
        onnx.save(plan.build(plan.errors), int8)
        others = write_by_onnxruntime(bundle / MODEL_FILE, Path(folder), plan.method)
        runtime = load(bundle, device="cpu", num_threads=threads)
        sides: dict[str, Callable[[Any], object]] = {
            "torch eager": lambda pixels: task.answer(torch.from_numpy(pixels)),
            "fp32": runtime.scores,
            "int8": session_of(int8, threads),
            **{side: session_of(file, threads) for side, file in others.items()},
        }
        if importlib.util.find_spec("openvino") is not None:
            sides["OpenVINO fp32"] = openvino_model(bundle / MODEL_FILE, "f32", threads)
            sides["OpenVINO bf16"] = openvino_model(bundle / MODEL_FILE, "bf16", threads)
        for batch in batches:
            pixels = pixels_of(batch)
            for ours, theirs in [
                ("fp32", "torch eager"),
                ("int8", "fp32"),
                ("int8", "quantize_dynamic"),
                ("int8", "quantize_static"),
                ("fp32", "OpenVINO fp32"),
                ("int8", "OpenVINO bf16"),
            ]:
                if theirs in sides:
                    compare(f"{name}, batch {batch}", ours, theirs, sides, pixels, rounds, shared)


class Pixels(CalibrationDataReader):
    """One batch, from which `quantize_static` takes its ranges."""

    def __init__(self) -> None:
        self.batches = iter([{"pixels": pixels_of(4)}])

    def get_next(self) -> Any:
        return next(self.batches, None)


def write_by_onnxruntime(source: Path, folder: Path, method: str) -> dict[str, Path]:
    """Files by ONNX Runtime's own quantizers, by their names; of a transformer only the products are quantized."""
    model = onnx.load(source)
    del model.graph.value_info[:]
    onnx.save(model, folder / "clean.onnx")
    files = {"quantize_dynamic": folder / "dynamic.onnx"}
    ops, kind = ["MatMul"], QuantType.QInt8
    if method == "static":
        # Its dynamic convolutions are slower still with weights of int8.
        ops, kind = ["Conv", "MatMul"], QuantType.QUInt8
        files["quantize_static"] = folder / "static.onnx"
        target = files["quantize_static"]
        quantize_static(folder / "clean.onnx", target, Pixels(), per_channel=True)
    options = {"op_types_to_quantize": ops, "weight_type": kind, "per_channel": True}
    quantize_dynamic(folder / "clean.onnx", files["quantize_dynamic"], **options)
    return files


def compare(
    name: str,
    ours: str,
    theirs: str,
    sides: dict[str, Callable[[Any], object]],
    pixels: Any,
    rounds: int,
    shared: bool,
) -> None:
    clock = time.process_time if shared else time.perf_counter

    def milliseconds(side: str) -> float:
        with torch.inference_mode():
            start = clock()
            sides[side](pixels)
            return 1000 * (clock() - start)

    a, b, quotient = in_turns(lambda: milliseconds(ours), lambda: milliseconds(theirs), rounds)
    report(
        f"{name}, {ours} against {theirs}, {1 if shared else 2} threads", a, b, "ms", 1 / quotient
    )


def accuracy(kind: str, out: Path) -> None:
    """Train on Fashion-MNIST, export under a budget of half a point, and say what each format is worth."""
    words = fashion_mnist.vit_words() if kind == "vit" else fashion_mnist.lite0_words()
    epochs = "3" if kind == "vit" else "1"
    quiet = ("--trainer.max_epochs", epochs, "--trainer.enable_progress_bar", "false")
    fashion_mnist.run("fit", *words, *quiet, "--trainer.default_root_dir", out / "runs")
    fashion_mnist.write_test_images(out / "images")
    checkpoint = out / "runs/0/checkpoints/best.ckpt"
    target = ("--images", out / "images", "-o", out / "bundle")
    fashion_mnist.run("export", checkpoint, *target, "--int8", "--fp16", "--max-drop", "0.5")
    parity = json.loads((out / "bundle/parity.json").read_text(encoding="utf-8"))
    for name, row in parity["precisions"].items():
        keys = ("metric", "num_images", "before", "after", "drop", "num_bytes", "how")
        case = {"name": f"{kind} on Fashion-MNIST, {name}", **{key: row[key] for key in keys}}
        print(json.dumps(case), flush=True)


def outliers(demo: Path) -> None:
    """Plant outliers, and compare the answers in 8 bits with those in fp32, with and without SmoothQuant."""
    files = sorted((demo / "images").rglob("*.png"))
    labels = np.array([int(file.parent.name) for file in files])
    resize = providers.open_session(demo / "bundle" / PREPROCESS_FILE, "cpu")
    images = [np.array(Image.open(file).convert("RGB")) for file in files]
    pixels = np.concatenate([resize.run(["pixels"], {"image": image})[0] for image in images])
    samples = [{"pixels": pixels[start::45]} for start in range(8)]
    expected = None
    for factor in (1, 10, 30, 100):
        for how in ("fp32", "int8 without SmoothQuant", "int8"):
            graph = Graph.read(demo / "bundle" / MODEL_FILE)
            for norm, products in find_norms(graph):
                width = graph.get_constant(products[0].input[1]).shape[0]
                planted = np.where(np.arange(width) % 24 == 0, np.float32(1 / factor), 1)
                scale_channels(graph, norm, products, planted)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.onnx"
                model = graph.finish()
                # By their shapes the plan tells transformers from convolutional nets.
                source = onnx.load(demo / "bundle" / MODEL_FILE)
                model.graph.value_info.extend(source.graph.value_info)
                onnx.save(model, file)
                plan = plan_int8(file, samples)
                if how == "int8":
                    onnx.save(plan.build(plan.errors), file)
                elif how != "fp32":
                    onnx.save(quantize_matmuls(graph.finish(), plan.errors), file)
                ask = session_of(file)
                scores = np.concatenate([ask(batch)[0] for batch in np.array_split(pixels, 6)])
            expected = scores if expected is None else expected
            case = {
                "name": f"digits, outliers of {factor} times, {how}",
                "accuracy": float((scores.argmax(1) == labels).mean()),
                "other answers": int((scores.argmax(1) != expected.argmax(1)).sum()),
                "mean difference": float(np.abs(scores - expected).mean()),
                "largest difference": float(np.abs(scores - expected).max()),
            }
            print(json.dumps(case), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one of each kind, batch 1, few rounds"
    )
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *CONV_NET], help="only these")
    parser.add_argument("--shared", action="store_true", help="one thread, processor time")
    parser.add_argument("--accuracy", action="store_true", help="train, export and measure instead")
    parser.add_argument("--outliers", type=Path, metavar="DIR", help="the folder of `vfm demo`")
    options = parser.parse_args()
    if options.outliers is not None:
        outliers(options.outliers)
        return
    if options.accuracy:
        for kind in ("vit", "lite0"):
            with tempfile.TemporaryDirectory() as folder:
                accuracy(kind, Path(folder))
        return
    kinds = MODELS | CONV_NET
    names = ["ViT-S/16", *CONV_NET] if options.quick else kinds
    for name in options.models or names:
        batches, rounds = ([1], 3) if options.quick else ([1, 8], 15)
        time_model(name, kinds[name], batches, rounds, options.shared)


if __name__ == "__main__":
    main()
