"""Write a bundle: graphs, metadata, parity, golden images, card, checksums."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image
from vfm_runtime.bundle import write_manifest
from vfm_runtime.contract import (
    CARD_FILE,
    DEEPFAKE,
    GOLDEN_DIR,
    GOLDEN_FILE,
    MODEL_FILE,
    ONEFILE_FILE,
    PARITY_FILE,
    PREPROCESS_FILE,
    WEIGHTS_FILE,
    Contract,
)
from vfm_runtime.image import Pixels, open_image
from vfm_runtime.replay import golden_row

from vfm.bundle import parity as parity_check
from vfm.bundle.card import card
from vfm.bundle.parity import Parity, choose_images, compare
from vfm.bundle.to_onnx import write_model, write_onefile, write_preprocess
from vfm.tasks import BaseTask
from vfm.tasks.checkpoint import KEY, read_any, versions
from vfm.tasks.deepfake import DeepfakeTask
from vfm.tasks.model import TaskModel
from vfm.tasks.results import RESULTS_FILE

_MIN_OPSET = 18  # Resize has had antialiasing since
_GOLDEN_SIDE = 256
_NUM_GOLDEN = 3


class ExportError(ValueError):
    """The bundle cannot be written; the message says why and what to do."""


def export(
    checkpoint: Path,
    *,
    images: Path,
    out: Path = Path("bundle"),
    one_file: bool = False,
    opset: int = 20,
    num_images: int = 64,
    tolerance: float = 1e-3,
    overwrite: bool = False,
    base: Path | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Make an ONNX bundle from a checkpoint, and prove on real images that it gives the same answers.

    Args:
        checkpoint: A .ckpt file of a training run, or its adapter.safetensors.
        images: Folder of real images, for a model that tells real from fake also of videos, on which the bundle is
            compared with the model; three of them, shrunk to at most 256 pixels, or three crops, go into the bundle.
        out: Folder to write; -o for short.
        one_file: Also write onefile.onnx, both graphs in one for the simplest client.
        opset: Version of the ONNX operators.
        num_images: How many images to compare on.
        tolerance: Largest accepted difference of a score; boxes must also overlap by 99 %.
        overwrite: Replace an existing bundle.
        base: For an adapter, the file of the backbone's weights where it is no longer at its old place.
        trust: Packages besides vfm whose code the checkpoint may name.

    Returns:
        The folder of the bundle.

    Raises:
        ParityError: The answers differ; nothing is written to `out`.
        ExportError: The folder exists, or the graphs cannot be written.
    """
    parity_check.require_folder(Path(images))
    task = BaseTask.load(checkpoint, base=base, trust=trust)
    paths = choose_images(Path(images), num_images, videos=task.kind == DEEPFAKE)
    found = Path(checkpoint).parent / RESULTS_FILE
    results = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    origin = read_any(checkpoint)[KEY]
    done = export_task(
        task,
        paths,
        Path(out),
        origin=origin,
        results=results,
        one_file=one_file,
        opset=opset,
        tolerance=tolerance,
        overwrite=overwrite,
    )
    print(f"Parity on {done}\nBundle: {out}\nTry it: vfm-runtime predict {out} {paths[0]}")
    return Path(out)


def export_task(
    task: BaseTask,
    paths: Sequence[Path],
    out: Path,
    *,
    origin: Mapping[str, Any],
    results: Mapping[str, Any],
    one_file: bool = False,
    opset: int = 20,
    tolerance: float = 1e-3,
    overwrite: bool = False,
) -> Parity:
    """`export` for a task in memory.

    Args:
        task: A trained task; it is left on the CPU in evaluation mode.
        paths: Image files to compare on; also videos where the model takes them.
        out: Folder to write.
        origin: The entry of the checkpoint that says where the task comes from.
        results: Metrics by split, for the card.
        one_file: Also write both graphs in one.
        opset: Version of the ONNX operators.
        tolerance: Largest accepted difference of a probability.
        overwrite: Replace an existing bundle.

    Returns:
        The comparison, which has passed.
    """
    _check(out, opset, overwrite)
    task = task.cpu().float().eval()
    contract = Contract(
        task=task.kind,
        labels=task.labels,
        preprocess=task.preprocess.to_dict(),
        backbone=task.backbone.name,
        license=task.license,
        versions=versions(),
        rules=_rules(task),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved there when proved, so that no half or wrong bundle ever stands under its name.
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_graphs(partial, contract, task, opset, one_file)
        write_manifest(partial, contract)
        parity = compare(task, partial, paths, tolerance)
        text = json.dumps(parity.to_dict(), indent=2) + "\n"
        (partial / PARITY_FILE).write_text(text, encoding="utf-8")
        if not parity.passed:
            rejected = out.with_name(out.name + ".rejected")
            _replace(partial, rejected)
            parity_check.require(parity, rejected)
        _write_golden(partial, task, parity)
        (partial / CARD_FILE).write_text(card(contract, parity, results, origin), encoding="utf-8")
        write_manifest(partial, contract)
        _replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return parity


def _check(out: Path, opset: int, overwrite: bool) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not _MIN_OPSET <= opset <= newest:
        raise ExportError(
            f"--opset is {opset}; choices are {_MIN_OPSET} to {newest}. 20 runs almost everywhere."
        )
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(
            f"{out} exists, and a bundle never changes once written. "
            "Give another folder to --out, or replace it with --overwrite true."
        )


def _write_graphs(
    folder: Path, contract: Contract, task: BaseTask, opset: int, one_file: bool
) -> None:
    write_preprocess(folder / PREPROCESS_FILE, contract, task.preprocess, opset)
    write_model(folder / MODEL_FILE, contract, task, opset)
    if not one_file:
        return
    if (folder / WEIGHTS_FILE).exists():
        raise ExportError(
            "--one_file cannot hold more than 2 GB of weights. Leave it out: preprocess.onnx and "
            "model.onnx with model.onnx.data do the same."
        )
    write_onefile(folder / ONEFILE_FILE, folder / PREPROCESS_FILE, folder / MODEL_FILE, contract)


def _rules(task: BaseTask) -> dict[str, Any] | None:
    if not isinstance(task, DeepfakeTask):
        return None
    judge = task.judge()
    return {"crop": judge.crop.to_dict(), "decision": judge.decision.to_dict()}


def _write_golden(folder: Path, task: BaseTask, parity: Parity) -> None:
    """Keep a few images with torch's answers, for `vfm-runtime check` to replay anywhere."""
    (folder / GOLDEN_DIR).mkdir()
    model = TaskModel(task)
    cropped = model.judge is not None
    rows = []
    for number, pixels in enumerate(itertools.islice(_golden(model, parity), _NUM_GOLDEN)):
        name = f"{number:03d}.png"
        Image.fromarray(pixels).save(folder / GOLDEN_DIR / name)
        rows.append(golden_row(name, model.predict(pixels, cropped=cropped)))
    text = json.dumps({"tolerance": parity.tolerance, "images": rows}, indent=2) + "\n"
    (folder / GOLDEN_FILE).write_text(text, encoding="utf-8")


def _golden(model: TaskModel, parity: Parity) -> Iterator[Pixels]:
    """Images spread over those compared: shrunk, or of a model that cuts faces out the crops, which are small."""
    step = max(1, len(parity.images) // _NUM_GOLDEN)
    # Those between stand in where one shows no face.
    for image in (image for start in range(step) for image in parity.images[start::step]):
        if model.judge is None:
            picture = Image.fromarray(open_image(Path(image.name)))
            picture.thumbnail((_GOLDEN_SIDE, _GOLDEN_SIDE))
            yield np.array(picture)
        else:
            yield from model.judge.evidence(Path(image.name)).crops[:1]


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.chmod(0o755)  # a temporary folder is its owner's alone
    source.replace(target)
