"""Three heads on one backbone, in one graph on two CPU threads: against one head, and against three graphs.

    python tests/benchmarks/several_heads.py [--quick]

All sides answer from the same uint8 pixels of one image to probabilities. The weights are random: time does not depend
on them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sides import in_turns, report, seconds
from vfm_runtime.bundle.contract import Contract

from vfm import ClassificationTask
from vfm.bundle.multi_head import require_one_backbone
from vfm.bundle.onnx_graphs import write_model
from vfm.models.heads import ClassificationHead, LinearHead, MLPHead

THREADS = 2
BACKBONE = "vit_small_patch16_224"
OPSET = 20


def task_of(
    backbone: torch.nn.Module, head: ClassificationHead, labels: int, *, multilabel: bool
) -> ClassificationTask:
    task = ClassificationTask(
        BACKBONE, head, pretrained=False, adapt="linear", multilabel=multilabel
    )
    task.backbone.load_state_dict(backbone.state_dict())
    task.head.prepare(task.backbone.info, [f"class {k}" for k in range(labels)])
    return task.eval()


def contract_of(tasks: dict[str, ClassificationTask]) -> Contract:
    one = next(iter(tasks.values()))
    said = {name: {"task": task.kind, "labels": task.labels} for name, task in tasks.items()}
    single = "" in tasks
    return Contract(
        task=one.kind if single else "multi_head",
        labels=one.labels if single else tuple(tasks),
        preprocess=one.preprocess.to_dict(),
        backbone=BACKBONE,
        license=None,
        versions={},
        heads=None if single else said,
    )


def runner(tasks: dict[str, ClassificationTask], folder: Path) -> Callable[[], object]:
    path = folder / "model.onnx"
    write_model(path, contract_of(tasks), tasks, OPSET)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    return lambda: session.run(None, {"pixels": pixels})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one head alone, few rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    calls, rounds = 2 if quick else 5, 9 if quick else 41
    shared = ClassificationTask(BACKBONE, pretrained=False).backbone
    tasks = {
        "breed": task_of(shared, LinearHead(), 1000, multilabel=False),
        "attributes": task_of(shared, MLPHead(512), 40, multilabel=True),
        "scene": task_of(shared, LinearHead(), 10, multilabel=False),
    }
    require_one_backbone(tasks)
    with tempfile.TemporaryDirectory() as folder:
        several = runner(tasks, Path(folder))
        chosen = list(tasks.values())[: 1 if quick else None]
        alone = [runner({"": task}, Path(folder)) for task in chosen]

    def milliseconds(work: list[Callable[[], object]]) -> float:
        return 1000 * seconds(lambda: [run() for _ in range(calls) for run in work]) / calls

    sides = {"one head": alone[:1]} | ({} if quick else {"three graphs": alone})
    for name, others in sides.items():
        ours, theirs, quotient = in_turns(
            lambda: milliseconds([several]), lambda others=others: milliseconds(others), rounds
        )
        title = f"three heads on one ViT-S/16 against {name}, {THREADS} threads"
        report(title, ours, theirs, "ms", 1 / quotient)


if __name__ == "__main__":
    main()
