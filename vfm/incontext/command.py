"""`vfm classify`: labels for images by a few examples of each class, or by words, without training."""

from __future__ import annotations

import json as json_format
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.heads_on_features import fit_nearest_mean
from vfm_runtime.zero_shot import (
    REFUSED,
    ZeroShotClassifier,
    fit_zero_shot,
    make_prompts,
    read_prompts,
)

from vfm.embed.models import open_embedder
from vfm.embed.passes import ImageTextModel, ImageTower, Prepared, embed_batches
from vfm.embed.sources import SourceImage, list_source_images
from vfm.incontext.class_bundle import write_class_bundle
from vfm.incontext.few_shot import fit_few_shot
from vfm.incontext.support_curve import format_points, measure_supports, write_curve
from vfm.incontext.towers import open_image_text_model
from vfm.models.heads.embedding import EmbeddingSource


def classify(
    images: Path,
    *,
    model: str,
    examples: Path | None = None,
    labels: str | None = None,
    templates: Sequence[str] = (),
    prompts: Path | None = None,
    text: Path | None = None,
    none_below: float | None = None,
    none_images: Path | None = None,
    embedding: EmbeddingSource | None = None,
    base: Path | None = None,
    curve: Path | None = None,
    draws: int = 5,
    bundle: Path | None = None,
    json: bool = False,
    device: str = "auto",
    batch_size: int = 32,
    trust: Sequence[str] = (),
) -> None:
    """Label images by a few examples of each class, from one image a class on, or by words; nothing is trained.

    Args:
        images: Folder of images, or a table of them.
        model: Name of a backbone, checkpoint or folder of a bundle; for words open_clip:NAME/WEIGHTS, a checkpoint of
            a ContrastiveTask, a bundle of one of these, or conse:NAME.
        examples: Folder with a folder of images for each class, named by it.
        labels: In place of examples: labels as words, with commas between.
        templates: Texts that labels, or the classes of examples, stand in, in place of {}; several are averaged.
        prompts: In place of labels: JSON file with a list of texts for each label.
        text: Folder of a text encoder, by which conse:NAME reads words.
        none_below: Cosine below which an image shows none of the labels given as words.
        none_images: Folder of images that show none of the labels, by which that cosine is chosen.
        embedding: What the vector is made of: pooled (the default), class_token, patches or layers.
        base: File of the backbone's weights, for an adapter, or for a name in place of timm's.
        curve: Folder to write the accuracy of 1, 2, 4, 8 and 16 examples a class to, as JSON, plot and page.
        draws: Number of random supports of each size of the curve.
        bundle: Folder to write a bundle to that labels by the means of these examples or by the words, which any client
            may replace.
        json: Print JSON, one object a line and image.
        device: cpu, cuda, or auto for CUDA where there is one.
        batch_size: Number of images that go through the model at once.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        OptionError: Not exactly one of examples, labels and prompts is given, or the model has no text tower.
        DataError: A class has no example that can be read, or there are fewer than two classes.
    """
    ways = {"examples": examples, "labels": labels, "prompts": prompts}
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) != 1:
        raise OptionError(
            f"{' and '.join(f'--{name}' for name in chosen) or 'Nothing'} {'say' if chosen else 'says'} what the "
            "classes are. Give one of --examples DIR, --labels cat,dog and --prompts FILE."
        )
    allowed: dict[tuple[str, ...], dict[str, object]] = {
        ("examples",): {"curve": curve, "embedding": embedding},
        ("labels", "examples"): {"templates": templates or None},
        ("labels", "prompts"): {"text": text, "none-below": none_below, "none-images": none_images},
    }
    for names, options in allowed.items():
        misplaced = [name for name, value in options.items() if value is not None]
        if misplaced and chosen[0] not in names:
            where = " or ".join(f"--{name}" for name in names)
            raise OptionError(
                f"--{misplaced[0]} goes with {where}, not with --{chosen[0]}. Leave it out."
            )
    if bundle is not None and not Path(model).is_dir():
        how = "--text true -o" if examples is None else "-o"
        raise OptionError(
            f"--bundle adds classes to a bundle, and {model} is none. Export it first: vfm export {model} --images "
            f"IMAGES {how} BUNDLE."
        )
    shown = list_source_images(images)
    if examples is None:
        texts = (
            read_prompts(prompts) if prompts else make_prompts(str(labels).split(","), templates)
        )
        pair = open_image_text_model(model, base=base, text=text, device=device, trust=trust)
        target = None if bundle is None else (Path(model), bundle)
        _classify_by_words(shown, pair, texts, none_below, none_images, json, batch_size, target)
        return
    labeled = _list_examples(examples)
    predictor, _ = open_embedder(model, source=embedding, base=base, device=device, trust=trust)
    taught, vectors = _embed(predictor, labeled, batch_size)
    classes = [str(one.image.columns["label"]) for one in taught]
    counts = Counter(classes)
    empty = {str(one.columns["label"]) for one in labeled} - set(counts)
    if empty:
        raise DataError(
            f"No example of '{min(empty)}' in {examples} can be read. Add one, or delete the folder."
        )
    _refuse_contradictions(taught)
    keys = [one.sha256 for one in taught]
    words = _read_class_names(predictor, model, sorted(counts), templates)
    classifier = fit_few_shot(vectors, classes, keys=keys, words=words)
    judged = f": {classifier.accuracy} accuracy" if classifier.accuracy is not None else ""
    print(
        f"{len(taught)} examples of {len(counts)} classes ({min(counts.values())} to {max(counts.values())} each); "
        f"{classifier.name}, {classifier.way}{judged}",
        file=sys.stderr,
    )
    if curve is not None:
        points = measure_supports(vectors, classes, keys=keys, draws=draws, words=words)
        print(format_points(points), file=sys.stderr)
        write_curve(curve, points, f"{len(taught)} examples of {len(counts)} classes by {model}")
    if bundle is not None:
        names = classifier.labels
        note = "By the nearest mean of a few examples each: "
        write_class_bundle(
            Path(model),
            fit_nearest_mean(vectors, np.array([names.index(label) for label in classes])),
            names,
            bundle,
            note=note + ", ".join(f"{name} ({counts[name]})" for name in names) + ".",
        )
        print(f"{bundle}: labels by the nearest mean of each class", file=sys.stderr)
    answered, vectors = _embed(predictor, shown, batch_size)
    scores = classifier.score(vectors) if answered else np.zeros((0, len(classifier.labels)))
    for one, row in zip(answered, scores, strict=True):
        label = classifier.labels[int(row.argmax())]
        _print_answer(one, {"label": label, "score": float(row.max())}, json)


def _classify_by_words(
    images: Sequence[SourceImage],
    model: ImageTextModel,
    prompts: dict[str, list[str]],
    none_below: float | None,
    none_images: Path | None,
    json: bool,
    batch_size: int,
    target: tuple[Path, Path] | None,
) -> None:
    """Print the label of each image; `target` is the bundle of the model, and the folder of one with these labels."""
    if none_below is not None and none_images is not None:
        raise OptionError("--none-images chooses what --none-below gives. Leave one of them out.")
    if target is not None and (none_below is not None or none_images is not None):
        raise OptionError(
            "--bundle labels each image, and 'none of these' is no part of it. Leave --none-below and --none-images "
            "out."
        )
    classifier = fit_zero_shot(model, prompts)
    if target is not None:
        counts = ", ".join(f"{name} ({len(some)})" for name, some in prompts.items())
        write_class_bundle(
            target[0],
            classifier.make_head(),
            classifier.labels,
            target[1],
            note=f"By the mean of the vectors of some prompts each: {counts}.",
            sigmoid=classifier.bias is not None,
        )
        print(f"{target[1]}: labels by words", file=sys.stderr)
    if none_images is not None:
        _, others = _embed(model, list_source_images(none_images), batch_size)
        none_below = classifier.calibrate(others)
        print(
            f"none of these: below a cosine of {none_below:.4f}, as {REFUSED:.0%} of the {len(others)} images of "
            f"{none_images}",
            file=sys.stderr,
        )
    answered, vectors = _embed(model, images, batch_size)
    for one, answer in zip(answered, classifier.answer(vectors, none_below), strict=True):
        _print_answer(one, asdict(answer), json)


def _print_answer(one: Prepared, values: dict[str, Any], json: bool) -> None:
    if json:
        print(json_format.dumps({"image": one.image.path, **values}))
    elif values["label"] is None:
        # The score is that of the label it would have had.
        print(f"{one.image.path}: none of these, highest cosine {values['similarity']:.3f}")
    else:
        print(f"{one.image.path}: {values['label']} {values['score']:.3f}")


def _read_class_names(
    predictor: Predictor, model: str, names: Sequence[str], templates: Sequence[str]
) -> ZeroShotClassifier | None:
    """The classes of examples as words; None where the model has no text tower."""
    if predictor.scale is not None:
        return fit_zero_shot(predictor, make_prompts(names, templates))
    if templates:
        raise OptionError(
            f"--templates is a text for words, and {model} has no text tower. Leave it out, or name a pair of towers."
        )
    return None


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
    predictor: ImageTower, images: Sequence[SourceImage], batch_size: int
) -> tuple[list[Prepared], np.ndarray]:
    """Embed images; those that cannot be read are said and left out."""
    ready: list[Prepared] = []
    vectors: list[np.ndarray] = []
    for batch, values in embed_batches(predictor, images, batch_size):
        ready += [one for one in batch if not one.reason]
        vectors += [values] if len(values) else []
        for one in batch:
            if one.reason:
                print(f"unreadable: {one.image.path}: {one.reason}", file=sys.stderr)
    return ready, np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32)
