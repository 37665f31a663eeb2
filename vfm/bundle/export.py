"""Write a bundle: graphs, metadata, parity, golden images, card, checksums."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vfm_runtime
from vfm_runtime.bundle.contract import (
    CARD_FILE,
    MODEL_FILE,
    ONEFILE_FILE,
    PARITY_FILE,
    PREPROCESS_FILE,
    WEIGHTS_FILE,
    Contract,
)
from vfm_runtime.bundle.manifest import write_manifest
from vfm_runtime.bundle.predictor import Arrays

from vfm.bundle import parity as parity_check
from vfm.bundle.accuracy import Measure, runner
from vfm.bundle.card import card
from vfm.bundle.contract import Fitted, fit, placing_head
from vfm.bundle.errors import ExportError
from vfm.bundle.golden import write_golden
from vfm.bundle.onnx_graphs import Answers, write_onefile, write_preprocess, write_several
from vfm.bundle.ood import Placed, drift_reference
from vfm.bundle.options import Options, check
from vfm.bundle.parity import Parity, choose_images, compare
from vfm.bundle.precisions import compare_precision, to_dict, write_precision
from vfm.bundle.source import NUM_SAMPLES, SAMPLE_BATCH, Trained, load_all
from vfm.bundle.triton import check_repository, write_triton
from vfm.tasks import BaseTask
from vfm.tasks.predictor import TorchPredictor
from vfm.tasks.validation import Validation


def export(
    checkpoints: Sequence[str],
    *,
    images: Path,
    out: Path = Path("bundle"),
    data: Path | None = None,
    int8: bool = False,
    fp16: bool = False,
    max_drop: float = 0.5,
    calibrate: bool = False,
    min_precision: float | None = None,
    reference: bool = False,
    one_file: bool = False,
    triton: Path | None = None,
    opset: int = 20,
    num_images: int = 64,
    tolerance: float = 1e-3,
    overwrite: bool = False,
    base: Path | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Make an ONNX bundle from a checkpoint, and prove on real images that it gives the same answers.

    Several checkpoints with one frozen backbone become one bundle, whose backbone runs once for all heads.

    Args:
        checkpoints: A .ckpt file of a training run, or its adapter.safetensors; or several, each as FILE or NAME=FILE.
        images: Folder of real images, for a model that tells real from fake also of videos, on which the bundle is
            compared with the model; three of them, shrunk to at most 256 pixels, or three crops, go into the bundle.
        out: Folder to write; -o for short.
        data: Labelled validation images for int8, fp16, calibrate and reference: a folder or table as for training; by
            default the val split of the training.
        int8: Also write a graph in 8 bits, for the CPU; layers that do harm stay in 32 bits.
        fp16: Also write a graph in 16 bits, for GPUs.
        max_drop: Points (hundredths) that accuracy, mAP, AP or AUC may lose in fewer bits.
        calibrate: Fit a temperature, so that scores are probabilities, and thresholds for each label.
        min_precision: With calibrate: share of the sure answers that shall be right, such as 0.95; others are unsure.
        reference: Also answer how far an image is from those of the training; needed to watch for drift.
        one_file: Also write onefile.onnx, both graphs in one for the simplest client.
        triton: Folder to write a model repository for Triton to, in 16 bits with fp16.
        opset: Version of the ONNX operators; from 23 on, attention is one operator.
        num_images: How many images to compare on.
        tolerance: Largest accepted difference of a score; boxes must also overlap by 99 %.
        overwrite: Replace an existing bundle.
        base: For an adapter, the file of the backbone's weights where it is no longer at its old place.
        trust: Packages besides vfm whose code the checkpoint may name.

    Returns:
        The folder of the bundle.

    Raises:
        ParityError: The answers differ; nothing is written to `out`.
        BudgetError: The figure drops by more than `max_drop` points.
        ExportError: The folder exists, the checkpoints do not go together, or the graphs cannot be written.
    """
    parity_check.require_folder(Path(images))
    options = Options(
        one_file=one_file,
        opset=opset,
        tolerance=tolerance,
        overwrite=overwrite,
        int8=int8,
        fp16=fp16,
        max_drop=max_drop,
        calibrate=calibrate,
        min_precision=min_precision,
        reference=reference,
        trust=tuple(trust),
    )
    check(Path(out), options)
    if triton is not None:
        check_repository(Path(triton), Path(out).resolve().name)
    if num_images < 1:
        raise ExportError(f"--num_images is {num_images}. Give at least 1.")
    trained = load_all(checkpoints, options, data=data, base=base)
    videos = any(one.task.takes_video for one in trained.values())
    paths = choose_images(Path(images), num_images, videos=videos)
    done = export_all(trained, paths, Path(out), options)
    print(f"Parity on {done}\nBundle: {out}\nTry it: vfm-runtime predict {out} {paths[0]}")
    if triton is not None:
        precision = "fp16" if fp16 else "fp32"
        name = Path(out).resolve().name
        task = next(iter(trained.values())).task
        made = write_triton(Path(out), Path(triton), name, precision=precision, task=task)
        print(f"Model repository for Triton: {made}")
    return Path(out)


def export_task(
    task: BaseTask,
    paths: Sequence[Path],
    out: Path,
    *,
    origin: Mapping[str, Any],
    results: Mapping[str, Any],
    images: Validation | None = None,
    **options: Any,
) -> Parity:
    """`export` for a task in memory.

    Args:
        task: A trained task; it is left on the CPU in evaluation mode.
        paths: Image files to compare on; also videos where the model takes them.
        out: Folder to write.
        origin: The entry of the checkpoint that says where the task comes from.
        results: Metrics by split, for the card.
        images: To fit and measure on, where the options ask for it.
        options: As of `Options`.

    Returns:
        The comparison, which has passed.
    """
    given = Options(**options)
    return export_all({"": Trained(task, origin, results, images)}, paths, out, given)


def export_all(
    trained: Mapping[str, Trained], paths: Sequence[Path], out: Path, options: Options
) -> Parity:
    """`export` for tasks in memory, which have one backbone.

    Args:
        trained: By the names of the heads; that of a single one is empty.
        paths: Image files to compare on.
        out: Folder to write.
        options: What to write.

    Returns:
        The comparison, which has passed.

    Raises:
        ExportError: The folder exists, or an option makes no sense.
    """
    check(out, options)
    for one in trained.values():
        one.task.cpu().float().eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved there when proved, so that no half or wrong bundle ever stands under its name.
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        parity = _write(partial, trained, paths, out, options)
        _replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return parity


def _write(
    folder: Path,
    trained: Mapping[str, Trained],
    paths: Sequence[Path],
    out: Path,
    options: Options,
) -> Parity:
    tasks = {name: one.task for name, one in trained.items()}
    images = {name: one.validation for name, one in trained.items() if one.validation is not None}
    fitted = fit(
        trained,
        calibrate=options.calibrate,
        min_precision=options.min_precision,
        reference=options.reference,
        trust=options.trust,
    )
    contract = fitted.contract
    _write_graphs(folder, fitted, tasks, options)
    if fitted.placed is not None:
        _write_reference(folder, contract, fitted.placed, images[placing_head(trained)])
    # Before anything that takes long: a graph that is wrong need not be measured.
    write_manifest(folder, contract)
    task = next(iter(tasks.values()))
    model = TorchPredictor(task, contract, Answers(contract, tasks, fitted.reference).eval())
    parity = compare(model, folder, paths, options.tolerance)
    _require(parity, folder, out)
    samples = next(iter(trained.values())).samples
    others = _write_precisions(folder, contract, images, samples, parity, options)
    text = json.dumps(parity.to_dict() | {"precisions": others}, indent=2) + "\n"
    (folder / PARITY_FILE).write_text(text, encoding="utf-8")
    runtimes = {p: vfm_runtime.load(folder, device="cpu", precision=p) for p in others}
    write_golden(folder, model, parity, runtimes)
    sizes = {"fp32": _size(folder), **{name: row["num_bytes"] for name, row in others.items()}}
    text = card(contract, parity, trained, fitted.calibrations, others, sizes)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    write_manifest(folder, contract)
    return parity


def _size(folder: Path) -> int:
    files = (folder / name for name in (MODEL_FILE, WEIGHTS_FILE))
    return sum(file.stat().st_size for file in files if file.exists())


def _require(parity: Parity, folder: Path, out: Path) -> None:
    if parity.passed:
        return
    text = json.dumps(parity.to_dict(), indent=2) + "\n"
    (folder / PARITY_FILE).write_text(text, encoding="utf-8")
    rejected = out.with_name(out.name + ".rejected")
    _replace(folder, rejected)
    parity_check.require(parity, rejected)


def _write_precisions(
    folder: Path,
    contract: Contract,
    images: Mapping[str, Validation],
    samples: Sequence[Arrays],
    parity: Parity,
    options: Options,
) -> dict[str, dict[str, Any]]:
    """The graphs of fewer bits that were asked for, and what was measured of each, for JSON."""
    asked = [name for name in ("fp16", "int8") if getattr(options, name)]
    if not asked:
        return {}
    if (folder / WEIGHTS_FILE).exists():
        raise ExportError(
            f"--{asked[0]} cannot be had of a model with more than 2 GB of weights. Leave it out, or take a smaller "
            "backbone."
        )
    if not images:
        raise ExportError(
            f"--{asked[0]} is measured on labelled validation images. Name them with --data."
        )
    measure = Measure(images, folder / MODEL_FILE)
    samples = samples or measure.samples(NUM_SAMPLES, SAMPLE_BATCH)
    budget = options.max_drop
    written = [write_precision(name, folder, measure, samples, budget) for name in asked]
    write_manifest(folder, contract)
    paths = [Path(image.name) for image in parity.images]
    return {
        one.name: to_dict(one, compare_precision(folder, one.name, paths, parity.answers))
        for one in written
    }


def _write_graphs(
    folder: Path, fitted: Fitted, tasks: Mapping[str, BaseTask], options: Options
) -> None:
    contract, opset = fitted.contract, options.opset
    preprocess = next(iter(tasks.values())).preprocess
    write_preprocess(folder / PREPROCESS_FILE, contract, preprocess, opset)
    write_several(folder / MODEL_FILE, contract, tasks, opset, reference=fitted.reference)
    if not options.one_file:
        return
    if (folder / WEIGHTS_FILE).exists():
        raise ExportError(
            "--one_file cannot hold more than 2 GB of weights. Leave it out: preprocess.onnx and "
            "model.onnx with model.onnx.data do the same."
        )
    write_onefile(folder / ONEFILE_FILE, folder / PREPROCESS_FILE, folder / MODEL_FILE, contract)


def _write_reference(folder: Path, contract: Contract, placed: Placed, images: Validation) -> None:
    """What later answers are compared with to find drift: those for validation images."""
    outputs = images.outputs(runner(folder / MODEL_FILE))
    drift_reference(outputs, contract, placed.held_out).write(folder)


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.chmod(0o755)  # a temporary folder is its owner's alone
    source.replace(target)
