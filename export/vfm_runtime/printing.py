"""Printing of the command line: errors, predictions, and what a bundle is."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from vfm_runtime.bundle.model import Model
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.media.image import ImageError, Pixels
from vfm_runtime.tasks.base import Prediction, PredictionView

_MAX_ERROR_LINES = 8


def print_error(error: Exception) -> None:
    """Print the first lines of an error to stderr."""
    lines = str(error).splitlines()[:_MAX_ERROR_LINES]
    print("error: " + "\n".join(lines), file=sys.stderr)


def print_prediction(
    path: Path, prediction: Prediction | ImageError, options: argparse.Namespace, model: Predictor
) -> None:
    """Print the model's prediction for one file, or why it has none, and draw it where `predict` is told to."""
    view = PredictionView(top=options.top, threshold=options.threshold)
    if isinstance(prediction, ImageError):
        print_error(prediction)
        if options.json:
            print(json.dumps({"image": str(path), "error": str(prediction)}))
        return
    if options.json:
        print(json.dumps({"image": str(path), **prediction.to_dict(view)}))
    else:
        for line in prediction.lines(view):
            print(f"{path}: {line}")
    if (
        options.draw is not None
        and (drawn := prediction.draw(model.open_source(path), view)) is not None
    ):
        _save(path, drawn, options.draw)


def _save(path: Path, drawn: Pixels, folder: Path) -> None:
    """Write the picture under its own path below the folder, `cat.jpg` as `cat.jpg.png`, so that names do not meet."""
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    target = Path(folder, *parts)
    target = target.with_name(f"{target.name}.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn).save(target)


def describe_bundle(model: Model, files: dict[str, int]) -> Iterator[str]:
    """Describe a loaded bundle and its files, with their bytes by name, line by line."""
    contract = model.contract
    shown = ", ".join(contract.labels[:5]) + (", ..." if len(contract.labels) > 5 else "")
    yield f"task       {contract.task}"
    yield f"labels     {len(contract.labels)}: {shown}"
    yield f"backbone   {contract.backbone}"
    yield f"size       {contract.size[0]} x {contract.size[1]} (height x width)"
    yield f"license    {contract.license or 'not stated'}"
    yield f"versions   {', '.join(f'{k} {v}' for k, v in sorted(contract.versions.items()))}"
    if contract.value_range is not None:
        low, high = contract.value_range
        yield f"values     {low:g} to {high:g} of images of more than 8 bits"
    if (tiling := contract.tiling) is not None:
        least = f"{tiling.side} pixels that overlap by {tiling.overlap:g} or more"
        yield f"tiles      {least}, of images larger than one and a half; at most {tiling.max_tiles:,}"
    if (embedding := contract.embedding) is not None:
        norm = ", of norm 1" if embedding.normalize else ""
        yield f"embedding  {embedding.source or embedding.output}{norm}"
    if (text := contract.text) is not None:
        yield f"text       {text.length} tokens ({text.file}), beside the embedding"
    if model.vectors is not None:
        yield f"vectors    of {len(model.vectors.vectors):,} images, to search in"
    for name, head in model.task_type.heads.items():
        if name:
            yield f"head       {name}: {head.name}, {len(head.labels)} labels"
        yield from (f"{rule:<10} {text}" for rule, text in head.describe_rules())
    if (rules := contract.group_rules) is not None:
        named = ", ".join(
            n if values else f"{n} (general rule)" for n, values in rules.groups.items()
        )
        yield f"groups     by {rules.column}: {named}; {rules.criterion}"
    yield f"device     {model.device}"
    yield f"precision  {model.precision} (the bundle has {', '.join(model.precisions)})"
    for name, size in files.items():
        yield f"{size:>12,} B  {name}"
