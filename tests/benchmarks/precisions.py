"""Formats of a bundle on two CPU threads: torch eager, fp32, int8, and OpenVINO in bfloat16, for 1 and 8 images.

    python tests/benchmarks/precisions.py [--quick] [--accuracy]

All sides answer from the same uint8 pixels to probabilities, in turns. The weights are random, on which time does not
depend. OpenVINO is measured where the package `openvino` is installed. With --accuracy, two models are trained on
Fashion-MNIST for a few minutes each and exported under a budget: what each format is worth.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fashion_mnist
import torch
from bundles import MODELS, make_bundle, new_task, pixels_of
from sides import in_turns, report, seconds
from vfm_runtime import load
from vfm_runtime.bundle import providers
from vfm_runtime.bundle.contract import MODEL_FILE

from vfm.quantization.int8 import write_int8

THREADS = 2


def openvino_model(path: Path, hint: str) -> Callable[[Any], object]:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": THREADS}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda pixels: compiled({"pixels": pixels})


def session_of(path: Path) -> Callable[[Any], object]:
    session = providers.open_session(path, "cpu", num_threads=THREADS)
    return lambda pixels: session.run(None, {"pixels": pixels})


def time_model(name: str, backbone: str, batches: list[int], rounds: int) -> None:
    task = new_task(backbone)
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(task, Path(folder))
        int8 = Path(folder) / "int8.onnx"
        write_int8(bundle / MODEL_FILE, int8, [{"pixels": pixels_of(4)}])
        runtime = load(bundle, device="cpu", num_threads=THREADS)
        sides: dict[str, Callable[[Any], object]] = {
            "torch eager": lambda pixels: task.answer(torch.from_numpy(pixels)),
            "fp32": runtime.scores,
            "int8": session_of(int8),
        }
        if importlib.util.find_spec("openvino") is not None:
            sides["OpenVINO fp32"] = openvino_model(bundle / MODEL_FILE, "f32")
            sides["OpenVINO bf16"] = openvino_model(bundle / MODEL_FILE, "bf16")
        for batch in batches:
            pixels = pixels_of(batch)
            for ours, theirs in [
                ("fp32", "torch eager"),
                ("int8", "fp32"),
                ("fp32", "OpenVINO fp32"),
                ("int8", "OpenVINO bf16"),
            ]:
                if theirs in sides:
                    compare(f"{name}, batch {batch}", ours, theirs, sides, pixels, rounds)


def compare(
    name: str,
    ours: str,
    theirs: str,
    sides: dict[str, Callable[[Any], object]],
    pixels: Any,
    rounds: int,
) -> None:
    def milliseconds(side: str) -> float:
        with torch.inference_mode():
            return 1000 * seconds(lambda: sides[side](pixels))

    a, b, quotient = in_turns(lambda: milliseconds(ours), lambda: milliseconds(theirs), rounds)
    report(f"{name}, {ours} against {theirs}, {THREADS} threads", a, b, "ms", 1 / quotient)


def accuracy(kind: str, out: Path) -> None:
    """Train on Fashion-MNIST, export under a budget of half a point, and say what each format is worth."""
    words = fashion_mnist.vit_words() if kind == "vit" else fashion_mnist.lite0_words()
    epochs = "3" if kind == "vit" else "1"
    quiet = ("--trainer.max_epochs", epochs, "--trainer.enable_progress_bar", "false")
    fashion_mnist.run("fit", *words, *quiet, "--trainer.default_root_dir", out / "runs")
    fashion_mnist.write_test_images(out / "images")
    checkpoint = out / "runs/0/checkpoints/best.ckpt"
    made = ("--images", out / "images", "-o", out / "bundle")
    fashion_mnist.run("export", checkpoint, *made, "--int8", "--fp16", "--max-drop", "0.5")
    parity = json.loads((out / "bundle/parity.json").read_text(encoding="utf-8"))
    for name, row in parity["precisions"].items():
        kept = ("metric", "num_images", "before", "after", "drop", "num_bytes", "how")
        case = {"name": f"{kind} on Fashion-MNIST, {name}", **{key: row[key] for key in kept}}
        print(json.dumps(case), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first model, batch 1, few rounds")
    parser.add_argument("--accuracy", action="store_true", help="train, export and measure instead")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.accuracy:
        for kind in ("vit", "lite0"):
            with tempfile.TemporaryDirectory() as folder:
                accuracy(kind, Path(folder))
        return
    for name, backbone in list(MODELS.items())[: 1 if options.quick else None]:
        time_model(name, backbone, [1] if options.quick else [1, 8], 3 if options.quick else 15)


if __name__ == "__main__":
    main()
