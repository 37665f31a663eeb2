"""One image at a time on two CPU threads: ONNX Runtime on the exported fp32 bundle against torch in eager mode.

    python tests/benchmarks/onnx_vs_torch.py [--quick]

Both sides answer from the same uint8 pixels to probabilities. The weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import vfm_runtime
from PIL import Image
from sides import in_turns, report, seconds

from vfm import ClassificationTask
from vfm.bundle.write import export_task
from vfm.tasks.checkpoint import versions

THREADS = 2
CASES = {"ViT-S/16": "vit_small_patch16_224", "ViT-B/16": "vit_base_patch16_224"}


def make_bundle(task: ClassificationTask, folder: Path) -> Path:
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    )
    picture.save(folder / "a.png")
    origin = {"versions": versions(), "seed": 0}
    export_task(task, [folder / "a.png"], folder / "bundle", origin=origin, results={})
    return folder / "bundle"


def case(name: str, backbone: str, calls: int, rounds: int) -> None:
    task = ClassificationTask(backbone, pretrained=False)
    task.head.prepare(task.backbone.info, [f"class {k}" for k in range(1000)])
    with tempfile.TemporaryDirectory() as folder:
        runtime = vfm_runtime.load(
            make_bundle(task, Path(folder)), device="cpu", num_threads=THREADS
        )
    pixels = np.random.default_rng(1).integers(
        0, 256, (1, *task.preprocess.size, 3), dtype=np.uint8
    )
    tensor = torch.from_numpy(pixels)

    def by_runtime() -> None:
        for _ in range(calls):
            runtime.scores(pixels)

    def by_torch() -> None:
        with torch.inference_mode():
            for _ in range(calls):
                task.answer(tensor)

    def milliseconds(work: object) -> float:
        return 1000 * seconds(work) / calls  # type: ignore[arg-type]

    ours, theirs, quotient = in_turns(
        lambda: milliseconds(by_runtime), lambda: milliseconds(by_torch), rounds
    )
    report(f"one image, {name}, fp32, {THREADS} threads", ours, theirs, "ms", 1 / quotient)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first model, few rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    for name, backbone in list(CASES.items())[: 1 if quick else None]:
        case(name, backbone, calls=5, rounds=5 if quick else 21)


if __name__ == "__main__":
    main()
