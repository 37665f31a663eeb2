"""A detector in production: ONNX Runtime against torch in eager mode, and against its backbone alone; 2 CPU threads.

    python tests/benchmarks/detection_onnx.py [--quick]

`nano` on ViT-S/16 at 384 pixels, one image, from uint8 pixels to boxes. The weights are random: time does not depend on
them. The second line's `ratio` is the share of the whole that head and decoding take.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sides import in_turns, report, seconds
from torch import Tensor, nn
from vfm_runtime.bundle.contract import MODEL_FILE, Contract
from vfm_runtime.bundle.providers import open_session

from vfm import DetectionTask
from vfm.bundle.onnx_graphs import write_model
from vfm.training.checkpoint import list_versions

THREADS = 2


class Maps(nn.Module):
    """The backbone alone, from the same pixels to the maps that the head reads."""

    def __init__(self, task: DetectionTask) -> None:
        super().__init__()
        self.preprocess, self.backbone = task.preprocess, task.backbone

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.backbone(self.preprocess.normalize(pixels)).maps
        return maps


def write_backbone(path: Path, task: DetectionTask) -> None:
    pixels = torch.zeros((2, *task.preprocess.size, 3), dtype=torch.uint8)
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(
        Maps(task).eval(),
        (pixels,),
        dynamic_shapes=batch,
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def contract(task: DetectionTask) -> Contract:
    return Contract(
        task=task.kind,
        labels=task.labels,
        preprocess=task.preprocess.to_dict(),
        backbone=task.backbone.name,
        license=None,
        versions=list_versions(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller input, few rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    side, calls, rounds = (192, 3, 3) if quick else (384, 4, 15)
    task = DetectionTask("vit_small_patch16_224", pretrained=False, image_size=side).eval()
    task.head.prepare(task.backbone.info, [f"class {k}" for k in range(80)])
    task.eval()
    with tempfile.TemporaryDirectory() as folder:
        whole, alone = Path(folder) / MODEL_FILE, Path(folder) / "backbone.onnx"
        write_model(whole, contract(task), {"": task}, 20)
        write_backbone(alone, task)
        sessions: list[Any] = [open_session(p, "cpu", num_threads=THREADS) for p in (whole, alone)]
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    row = np.array([[0, 0, side, side, side, side]], np.float32)
    tensors = torch.from_numpy(pixels), torch.from_numpy(row)

    def by_runtime() -> None:
        for _ in range(calls):
            sessions[0].run(None, {"pixels": pixels, "geometry": row})

    def by_torch() -> None:
        with torch.inference_mode():
            for _ in range(calls):
                task.answer(*tensors)

    def backbone() -> None:
        for _ in range(calls):
            sessions[1].run(None, {"pixels": pixels})

    def milliseconds(work: Any) -> float:
        return 1000 * seconds(work) / calls

    first, second, quotient = in_turns(
        lambda: milliseconds(by_runtime), lambda: milliseconds(by_torch), rounds
    )
    report(
        f"one image, nano on ViT-S/16, {side} px, against torch", first, second, "ms", 1 / quotient
    )
    first, second, quotient = in_turns(
        lambda: milliseconds(by_runtime), lambda: milliseconds(backbone), rounds
    )
    name = (
        f"nano on ViT-S/16, {side} px, whole and backbone alone; ratio: share of head and decoding"
    )
    report(name, first, second, "ms", 1 - 1 / quotient)


if __name__ == "__main__":
    main()
