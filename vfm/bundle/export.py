"""Export: from checkpoints to an ONNX bundle that is proved to predict as they do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

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
from vfm_runtime.tasks.base import Arrays

from vfm.bundle.accuracy import AccuracyMeter, open_run
from vfm.bundle.card import format_card
from vfm.bundle.contract import make_contract
from vfm.bundle.drafts import load_draft, replace_folder, write_draft, write_json
from vfm.bundle.errors import ExportError
from vfm.bundle.golden import write_golden
from vfm.bundle.lineage import (
    BOM_FILE,
    describe_uses,
    list_licenses,
    list_metrics,
    list_origins,
    make_bom,
    require_commercial,
)
from vfm.bundle.multi_head import choose_ood_head, name_checkpoints, require_one_backbone
from vfm.bundle.onnx_graphs import (
    ExportedModel,
    combine_uses,
    write_model,
    write_onefile,
    write_preprocess,
)
from vfm.bundle.ood import OodFit, Reference, fit_drift_reference, fit_ood, open_training
from vfm.bundle.options import ExportOptions
from vfm.bundle.pair import LICENSES, TextPart, compare_texts, export_pair
from vfm.bundle.parity import (
    Parity,
    choose_images,
    compare,
    compare_embeddings,
    raise_disagreement,
)
from vfm.bundle.precisions import compare_precision, write_precision
from vfm.bundle.triton import write_triton
from vfm.models.backbone import is_backbone_name
from vfm.tasks import BaseTask
from vfm.tasks.calibration import CALIBRATION_FILE, Calibration
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.image_text import PREFIX
from vfm.tasks.predictor import TorchPredictor
from vfm.tasks.validation import Validation

# Images from which the ranges of 8 bits are taken.
_NUM_SAMPLES, _SAMPLE_BATCH = 64, 8

_P = ParamSpec("_P")
_Files = str | Path | Sequence[str | Path]


def export_files(checkpoints: Sequence[str], options: ExportOptions) -> Path:
    """Make an ONNX bundle from a checkpoint, and prove on real images that it gives the same answers.

    Several checkpoints with one frozen backbone become one bundle, whose backbone runs once for all heads.

    Args:
        checkpoints: A .ckpt file of a training run, or its adapter.safetensors; or several, each as FILE or NAME=FILE;
            or the name of a backbone, or of a pair of towers, open_clip:NAME/WEIGHTS, for a bundle that only embeds.
        options: Options of the export.

    Returns:
        The folder of the bundle.

    Raises:
        ParityError: The predictions differ; nothing is written to `out`.
        BudgetError: The headline metric drops by more than `max_drop` points.
        ExportError: The folder exists, the checkpoints do not go together, or the graphs cannot be written.
    """
    options.check()
    pairs = [name for name in checkpoints if name.startswith(PREFIX)]
    if pairs and len(checkpoints) == 1:
        parity = export_pair(pairs[0], options)
        print(f"Parity on {parity}\nBundle: {options.out}")
        _warn_of_uses(LICENSES, options)
        return options.out
    if pairs:
        raise ExportError(
            f"{pairs[0]} stands beside others, and a pair of towers has a bundle of its own. Give vfm export "
            f"{PREFIX}NAME/WEIGHTS alone."
        )
    if options.text and (bare := [name for name in checkpoints if is_backbone_name(name)]):
        raise ExportError(
            f"--text writes a text tower, and {bare[0]} reads no words. Leave it out, or export a checkpoint of a "
            f"ContrastiveTask, or a pair of towers: vfm export {PREFIX}NAME/WEIGHTS --text true."
        )
    files = name_checkpoints(checkpoints)
    if options.data is not None and len(files) > 1:
        raise ExportError(
            f"--data is {options.data}, but there are {len(files)} checkpoints with labels of their own. Leave it out: "
            "each is validated on the val split of its training."
        )
    opened = {
        name if len(files) > 1 else "": Checkpoint.open(
            file, base=options.base, trust=options.trust
        )
        for name, file in files.items()
    }
    for name, one in opened.items():
        if not options.calibrate and one.calibration is not None:
            print(f"Calibration{f' of {name}' * bool(name)}: {one.calibration.origin}")
    parity = write_bundle(opened, options)
    example = parity.images[0].name
    print(
        f"Parity on {parity}\nBundle: {options.out}\nTry it: vfm-runtime predict {options.out} {example}"
    )
    if options.triton is not None:
        print(f"Model repository for Triton: {options.triton}")
    _warn_of_uses(list_licenses(opened, options.data_license), options)
    return options.out


def _warn_of_uses(licenses: Mapping[str, str | None], options: ExportOptions) -> None:
    for line in describe_uses(licenses):
        print(f"WARNING: {line}. See {options.out / CARD_FILE}.")


def _accept_options(
    options: Callable[_P, ExportOptions],
) -> Callable[Concatenate[_Files, _P], Path]:
    def export(checkpoints: _Files, /, *args: _P.args, **kwargs: _P.kwargs) -> Path:
        """`export_files` for Python: checkpoints, and the fields of `ExportOptions` by name."""
        single = isinstance(checkpoints, str | os.PathLike)
        files = [checkpoints] if single else checkpoints
        return export_files([str(file) for file in files], options(*args, **kwargs))  # type: ignore[union-attr]

    return export


export = _accept_options(ExportOptions)


def write_bundle(
    checkpoints: Mapping[str, Checkpoint],
    options: ExportOptions,
    paths: Sequence[Path] | None = None,
) -> Parity:
    """Write a bundle of checkpoints that have one backbone, and a model repository for Triton where it is asked for.

    Args:
        checkpoints: Checkpoints by the names of their heads; that of a single one is empty. Their tasks are left on the
            CPU in evaluation mode.
        options: Options of the export.
        paths: Files to compare on; by default spread over `options.images`.

    Returns:
        The comparison, which has passed.

    Raises:
        ExportError: The folder exists, or an option makes no sense for these checkpoints.
    """
    options.check()
    tasks = {name: one.task for name, one in checkpoints.items()}
    if options.text and (len(tasks) != 1 or next(iter(tasks.values())).text_model is None):
        what = "several heads" if len(tasks) != 1 else type(next(iter(tasks.values()))).__name__
        raise ExportError(
            f"--text writes a text tower, and {what} reads no words. Leave it out, or export a checkpoint of a "
            f"ContrastiveTask, or a pair of towers: vfm export {PREFIX}NAME/WEIGHTS --text true."
        )
    if len(tasks) != 1:
        require_one_backbone(tasks)
    if options.commercial:
        require_commercial(list_licenses(checkpoints, options.data_license))
    if paths is None:
        videos = any(task.bind_type().takes_video for task in tasks.values())
        paths = choose_images(options.images, options.num_images, videos=videos)
    if options.one_file and any(task.preprocess.tiles is not None for task in tasks.values()):
        raise ExportError(
            "--one_file is a graph that takes whole images, and this model cuts them into tiles. Leave it out, and use "
            "vfm-runtime, or cut them yourself (`tiles` in vfm.json)."
        )
    images = _open_validations(checkpoints, options)
    for task in tasks.values():
        task.cpu().float().eval()
    out = options.out
    with write_draft(out) as draft:
        parity = _write(draft, checkpoints, images, paths, options)
    if options.triton is not None:
        precision = "fp16" if options.fp16 else "fp32"
        task = next(iter(tasks.values()))
        write_triton(out, options.triton, out.resolve().name, precision=precision, task=task)
    return parity


def _write(
    folder: Path,
    checkpoints: Mapping[str, Checkpoint],
    images: Mapping[str, Validation],
    paths: Sequence[Path],
    options: ExportOptions,
) -> Parity:
    tasks = {name: one.task for name, one in checkpoints.items()}
    reader = next(iter(tasks.values())).text_model if options.text else None
    calibrations = _calibrate(checkpoints, images, options)
    ood, samples = _use_training(checkpoints, images, options)
    owner = max(tasks.values(), key=lambda task: task.backbone.pools)
    embedding = owner.describe_embedding(options.embedding, normalize=options.normalize)
    part = None if reader is None else TextPart.of_model(reader)
    tokenizer = None if part is None else part.describe()
    contract = make_contract(tasks, calibrations, ood, embedding, tokenizer)
    reference = None if ood is None else ood.reference
    _write_graphs(folder, contract, tasks, reference, options)
    if part is not None:
        part.write(folder, contract, options.opset)
    if ood is not None:
        # What later predictions are compared with to find drift: those for validation images.
        outputs = images[choose_ood_head(tasks)].collect_outputs(open_run(folder / MODEL_FILE))
        fit_drift_reference(outputs, contract, ood.held_out).write(folder)
    # Before anything that takes long: a graph that is wrong need not be measured.
    exported = ExportedModel(contract, tasks, reference).eval()
    model = TorchPredictor(next(iter(tasks.values())), contract, exported)
    runtime = load_draft(folder, contract, "fp32")
    parity = compare(model, runtime, paths, options.tolerance)
    if not parity.passed:
        write_json(folder / PARITY_FILE, parity.to_dict())
        write_manifest(folder, contract)
        rejected = options.out.with_name(options.out.name + ".rejected")
        replace_folder(folder, rejected)
        raise_disagreement(parity, rejected)
    compare_embeddings(model, runtime, [Path(image.name) for image in parity.images])
    facts = {} if reader is None else {"texts": compare_texts(reader, runtime)}
    written = _write_precisions(folder, images, samples, options)
    runtimes = {name: load_draft(folder, contract, name) for name in written}
    compared = [Path(image.name) for image in parity.images]
    for name, row in written.items():
        row |= compare_precision(runtimes[name], compared, parity.predictions)
    write_json(folder / PARITY_FILE, parity.to_dict() | {"precisions": written} | facts)
    write_golden(folder, model, parity, runtimes)
    files = (folder / name for name in (MODEL_FILE, WEIGHTS_FILE))
    num_bytes = sum(file.stat().st_size for file in files if file.exists())
    licenses = list_licenses(checkpoints, options.data_license)
    text = format_card(contract, parity, checkpoints, calibrations, written, num_bytes, licenses)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    (first, *_) = checkpoints.values()
    bom = make_bom(
        folder,
        contract,
        list_origins(checkpoints, licenses),
        versions=first.entry["versions"],
        fingerprint=first.entry.get("fingerprint"),
        metrics={name: list(list_metrics(one)) for name, one in checkpoints.items()},
    )
    write_json(folder / BOM_FILE, bom)
    write_manifest(folder, contract)
    return parity


def _open_validations(
    checkpoints: Mapping[str, Checkpoint], options: ExportOptions
) -> dict[str, Validation]:
    if not options.needs_validation:
        return {}
    if any(one.path is None for one in checkpoints.values()):
        # The data of a task that was never saved is not known.
        if options.reference and not options.calibrate:
            raise ExportError("--reference needs the checkpoint, which says what was trained on.")
        what = "calibrate needs" if options.calibrate else f"{options.precisions[0]} is measured on"
        raise ExportError(f"--{what} labelled validation images. Name them with --data.")
    refusals = (one.task.reference_refusal for one in checkpoints.values())
    if options.reference and (refusal := next(filter(None, refusals), None)):
        raise ExportError(refusal)
    is_measured = bool(options.precisions) or options.reference
    images = {}
    for name, one in checkpoints.items():
        is_judged = not options.calibrate or _open_out_of_fold(one, options) is not None
        if is_measured or not is_judged:
            images[name] = one.open_validation(options.data, tested=is_judged)
    return images


def _open_out_of_fold(checkpoint: Checkpoint, options: ExportOptions) -> Validation | None:
    """Return what calibrates a model whose head was solved on all images; None where other images do."""
    if options.data is not None or checkpoint.out_of_fold is None:
        return None
    return checkpoint.out_of_fold[1]


def _calibrate(
    checkpoints: Mapping[str, Checkpoint],
    images: Mapping[str, Validation],
    options: ExportOptions,
) -> dict[str, Calibration]:
    """Calibrations that are fitted now, or were by `vfm calibrate`, by the names of the heads that have one."""
    if not options.calibrate:
        return {name: c for name, one in checkpoints.items() if (c := one.calibration) is not None}
    calibrations = {}
    for name, one in checkpoints.items():
        judged, outputs = _open_out_of_fold(one, options), {}
        if judged is None:
            judged = images[name]
            outputs = judged.collect_outputs(TorchPredictor(one.task).run)
        if one.calibration is not None and one.calibration.groups is not None:
            print(
                f"WARNING: --calibrate fits anew, without the rules by {one.calibration.groups.rules.column} of "
                f"{CALIBRATION_FILE}. Leave it out to take these."
            )
        calibrations[name] = judged.fit_confidence(outputs, min_precision=options.min_precision)
    return calibrations


def _use_training(
    checkpoints: Mapping[str, Checkpoint], images: Mapping[str, Validation], options: ExportOptions
) -> tuple[OodFit | None, list[Arrays]]:
    """What is taken from training images, which are opened once: the OOD fit, and samples for the ranges of 8 bits."""
    tasks = {name: one.task for name, one in checkpoints.items()}
    first, head = next(iter(checkpoints)), choose_ood_head(tasks)
    ood, training = None, None
    if options.reference:
        instead = "The reference is fitted on every second validation image"
        training = open_training(checkpoints[head], instead)
        ood = fit_ood(tasks[head], images[head], training, uses=combine_uses(tasks))
    if not options.int8:
        return ood, []
    if head != first or training is None:
        instead = "The ranges of 8 bits are taken from validation images, on which the bundle is then measured"
        training = open_training(checkpoints[first], instead, _NUM_SAMPLES)
    source = training or images[first].images
    return ood, list(source.iterate_batches(_SAMPLE_BATCH, _NUM_SAMPLES))


def _write_graphs(
    folder: Path,
    contract: Contract,
    tasks: Mapping[str, BaseTask],
    reference: Reference | None,
    options: ExportOptions,
) -> None:
    preprocess = next(iter(tasks.values())).preprocess
    write_preprocess(folder / PREPROCESS_FILE, contract, preprocess, options.opset)
    write_model(folder / MODEL_FILE, contract, tasks, options.opset, reference=reference)
    is_large = (folder / WEIGHTS_FILE).exists()
    if options.precisions and is_large:
        raise ExportError(
            f"--{options.precisions[0]} cannot be had of a model with more than 2 GB of weights. Leave it out, or take "
            "a smaller backbone."
        )
    if options.one_file and is_large:
        raise ExportError(
            "--one_file cannot hold more than 2 GB of weights. Leave it out: preprocess.onnx and "
            "model.onnx with model.onnx.data do the same."
        )
    if options.one_file:
        write_onefile(
            folder / ONEFILE_FILE, folder / PREPROCESS_FILE, folder / MODEL_FILE, contract
        )


def _write_precisions(
    folder: Path,
    images: Mapping[str, Validation],
    samples: Sequence[Arrays],
    options: ExportOptions,
) -> dict[str, dict[str, Any]]:
    """Write the graphs of fewer bits that were asked for; return what was measured of each, for JSON."""
    if not options.precisions:
        return {}
    meter = AccuracyMeter(images, folder / MODEL_FILE)
    return {
        name: write_precision(name, folder, meter, samples, options.max_drop)
        for name in options.precisions
    }
