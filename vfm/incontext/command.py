"""`vfm classify`: labels for images by a few examples of each class, without training."""

from __future__ import annotations

import json as json_format
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.errors import DataError

from vfm.embed.models import open_embedder
from vfm.embed.passes import Prepared, embed_batches
from vfm.embed.sources import SourceImage, list_source_images
from vfm.incontext.few_shot import fit_few_shot
from vfm.incontext.support_curve import format_points, measure_supports, write_curve
from vfm.models.heads.embedding import EmbeddingSource


def classify(
    images: Path,
    *,
    examples: Path,
    model: str,
    embedding: EmbeddingSource | None = None,
    base: Path | None = None,
    curve: Path | None = None,
    draws: int = 5,
    json: bool = False,
    device: str = "auto",
    batch_size: int = 32,
    trust: Sequence[str] = (),
) -> None:
    """Label images by a few examples of each class, from one image a class on; nothing is trained.

    Args:
        images: Folder of images, or a table of them.
        examples: Folder with a folder of images for each class, named by it.
        model: Name of a backbone, checkpoint, or folder of a bundle that embeds.
        embedding: What the vector is made of: pooled (the default), class_token, patches or layers.
        base: File of the backbone's weights, for an adapter, or for a name in place of timm's.
        curve: Folder to write the accuracy of 1, 2, 4, 8 and 16 examples a class to, as JSON, plot and page.
        draws: Number of random supports of each size of the curve.
        json: Print JSON, one object a line and image.
        device: cpu, cuda, or auto for CUDA where there is one.
        batch_size: Number of images that go through the model at once.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        DataError: A class has no example that can be read, or there are fewer than two classes.
    """
    shown = list_source_images(images)
    labeled = _list_examples(examples)
    predictor, _ = open_embedder(model, source=embedding, base=base, device=device, trust=trust)
    taught, vectors = _embed(predictor, labeled, batch_size)
    labels = [str(one.image.columns["label"]) for one in taught]
    counts = Counter(labels)
    empty = {str(one.columns["label"]) for one in labeled} - set(counts)
    if empty:
        raise DataError(
            f"No example of '{min(empty)}' in {examples} can be read. Add one, or delete the folder."
        )
    _refuse_contradictions(taught)
    classifier = fit_few_shot(vectors, labels, keys=[one.sha256 for one in taught])
    judged = f": {classifier.accuracy} accuracy" if classifier.accuracy is not None else ""
    print(
        f"{len(taught)} examples of {len(counts)} classes ({min(counts.values())} to {max(counts.values())} each); "
        f"{classifier.name}, {classifier.way}{judged}",
        file=sys.stderr,
    )
    if curve is not None:
        points = measure_supports(vectors, labels, keys=[one.sha256 for one in taught], draws=draws)
        print(format_points(points), file=sys.stderr)
        write_curve(curve, points, f"{len(taught)} examples of {len(counts)} classes by {model}")
    answered, vectors = _embed(predictor, shown, batch_size)
    scores = classifier.score(vectors) if answered else np.zeros((0, len(classifier.labels)))
    for one, row in zip(answered, scores, strict=True):
        label, score = classifier.labels[int(row.argmax())], float(row.max())
        path = one.image.path
        if json:
            print(json_format.dumps({"image": path, "label": label, "score": score}))
        else:
            print(f"{path}: {label} {score:.3f}")


def _list_examples(folder: Path) -> list[SourceImage]:
    """The examples of a folder; each must lie in the folder of its class."""
    if not folder.is_dir():
        raise DataError(
            f"There is no folder of examples {folder}. Give one with a folder of images for each class."
        )
    labeled = list_source_images(folder)
    loose = [one for one in labeled if one.columns["label"] is None]
    if loose:
        raise DataError(
            f"{loose[0].path} lies in no folder of a class ({len(loose)} such examples). Move it to {folder}/CLASS/."
        )
    classes = {str(one.columns["label"]) for one in labeled}
    folders = (path for path in folder.iterdir() if path.is_dir() and path.name not in classes)
    empty = sorted(path.name for path in folders if not path.name.startswith("."))
    if empty and not any(one.columns["split"] for one in labeled):
        raise DataError(
            f"The class '{empty[0]}' in {folder} has no example. Add one, or delete the folder."
        )
    return labeled


def _refuse_contradictions(examples: Sequence[Prepared]) -> None:
    """Refuse one picture that is an example of two classes."""
    first: dict[str, Prepared] = {}
    for one in examples:
        other = first.setdefault(one.sha256, one)
        if other.image.columns["label"] != one.image.columns["label"]:
            raise DataError(
                f"{other.image.path} and {one.image.path} are the same picture, as examples of two classes. Delete "
                "the one that is wrong."
            )


def _embed(
    predictor: Predictor, images: Sequence[SourceImage], batch_size: int
) -> tuple[list[Prepared], np.ndarray]:
    """Embed images; those that cannot be read are said and left out."""
    ready: list[Prepared] = []
    vectors: list[np.ndarray] = []
    for batch, values in embed_batches(predictor, images, batch_size):
        ready += [one._replace(inputs={}) for one in batch if not one.reason]
        vectors += [values] if len(values) else []
        for one in batch:
            if one.reason:
                print(f"unreadable: {one.image.path}: {one.reason}", file=sys.stderr)
    return ready, np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32)
