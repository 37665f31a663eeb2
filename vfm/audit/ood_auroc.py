"""Out-of-distribution AUROC: whether the distance of an image from the training tells images of another kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.errors import VfmError

from vfm.audit.comparison import ClusterSampler, CountedMetric
from vfm.audit.source import AuditedModel, AuditError, PredictedImages, predict_images
from vfm.bundle.ood import embed, fit_reference, open_training
from vfm.data.records import Record
from vfm.metrics.ranking import Ranking
from vfm.report import Page
from vfm.tasks.checkpoint import find_copies

_BATCH = 32


def open_other_images(
    model: AuditedModel, path: Path | None, records: Sequence[Record]
) -> list[Record]:
    """Find the images of `--ood-data`, and make the model measure distances; of no path none.

    Args:
        model: Model that is audited. A checkpoint gets a reference of its training images, as its export fits it.
        path: Folder or table of images of another kind; None where the audit has none.
        records: Images of the audit.

    Raises:
        AuditError: There are none, some are images of the audit, or the model cannot measure distances.
    """
    if path is None:
        return []
    if not path.exists():
        raise AuditError(f"There is no {path} (looked in {Path.cwd()}). Check --ood-data.")
    data = model.kind.open_unlabeled(path)
    data.setup("predict")
    others = data.records["predict"]
    copies = find_copies(others, records)
    if copies:
        raise AuditError(
            f"{len(copies)} of the {len(others)} images of --ood-data {path}, such as {next(iter(copies))}, are images "
            "of the audit. Give images of another kind than those that the model is for."
        )
    if model.checkpoint is None:
        if not model.predictor.task_type.has_reference:
            raise AuditError(
                f"--ood-data asks for distances from the training, and {model.path} carries no reference of it. Export "
                "it with --reference true, audit the checkpoint, or leave --ood-data out."
            )
        return others
    try:
        training = open_training(model.checkpoint, "No distances can be measured")
        if training is None:
            raise AuditError("The training images are gone.")
        task = model.checkpoint.task
        model.reference = fit_reference(embed(task, training.iterate_batches(_BATCH)))
    except VfmError as error:
        raise AuditError(
            f"--ood-data asks for distances from the training images of {model.path}, which cannot be had: {error} "
            "Audit a bundle that carries a reference, or leave --ood-data out."
        ) from error
    return others


def measure_ood(
    model: AuditedModel,
    predicted: PredictedImages,
    keys: Sequence[str] | None,
    others: Sequence[Record],
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how well distances tell images of another kind from those of the audit, ready for JSON.

    Args:
        model: Model that measures distances.
        predicted: What it said of the images of the audit.
        keys: Key of what belongs together, for each of these images; None where each stands alone.
        others: Images of another kind.
        batch_size: Images in a batch.
        seed: Seed of the draws of the interval.

    Raises:
        AuditError: None of the others can be read.
    """
    second = predict_images(model, others, batch_size=batch_size)
    parts = [
        np.array([getattr(each, "distance", np.nan) for each in some.predictions], np.float64)
        for some in (predicted, second)
    ]
    sizes = [len(part) for part in parts]
    distances = np.concatenate(parts)
    is_other = np.arange(len(distances)) >= sizes[0]
    first = list(keys) if keys is not None else [f"image {i}" for i in range(sizes[0])]
    sampler = ClusterSampler.from_keys(
        [f"audit {key}" for key in first] + [f"other {i}" for i in range(sizes[1])],
        len(distances),
        seed,
    )
    interval = sampler.estimate(CountedMetric("auroc", Ranking(distances, is_other).auroc))
    assert interval is not None  # there are images of both
    limit = model.predictor.task_type.confidence.max_distance
    return {
        "num_images": sizes[1],
        "num_skipped": len(second.skipped),
        "auroc": interval.to_dict(),
        "median_distance": {
            "audited": float(np.median(parts[0])),
            "other": float(np.median(parts[1])),
        },
        "limit": limit,
        "fraction_beyond": None
        if limit is None
        else {
            "audited": float((parts[0] > limit).mean()),
            "other": float((parts[1] > limit).mean()),
        },
    }


def list_ood_sentences(result: Mapping[str, Any] | None) -> list[str]:
    """Return sentences on how well images of another kind are told; none where they were not looked at."""
    if result is None:
        return []
    value, beyond = result["auroc"], result["fraction_beyond"]
    sentences = [
        f"OOD AUROC {value['value']:.3f} (95 % interval {value['low']:.3f} to {value['high']:.3f}): of an audited "
        f"image and one of the {result['num_images']} of another kind, so often the other lies further from "
        "the training (0.5 is chance)."
    ]
    if beyond is not None:
        sentences.append(
            f"Beyond the limit of {result['limit']:.3f}, where the model abstains: {beyond['other']:.1%} of the images "
            f"of another kind, and {beyond['audited']:.1%} of those of the audit."
        )
    return sentences


def add_ood(page: Page, result: Mapping[str, Any]) -> None:
    """Add the images of another kind to the page of an audit."""
    page.add_heading("Images of another kind")
    page.add_text(
        "How far images lie from those of the training, by a Mahalanobis distance of their embeddings. This says "
        "something of these other images alone: of another kind again, the figure is another."
    )
    for sentence in list_ood_sentences(result):
        page.add_text(sentence)
    page.add_table(
        [
            {"images": name, "median distance": median}
            for name, median in result["median_distance"].items()
        ]
    )
