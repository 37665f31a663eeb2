"""Robustness audit: what is left of a model when photos get worse, what breaks first, mean corruption error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from vfm_runtime.errors import OptionError
from vfm_runtime.media.image import Pixels

from vfm.audit.comparison import ClusterSampler
from vfm.audit.kinds import Outcomes
from vfm.audit.source import AuditedData, AuditedModel, predict_images
from vfm.data.corruptions import Corruption
from vfm.data.dataset import sample_seed
from vfm.data.photo_corruptions import EVERYDAY, IMAGENET_C, MOVING
from vfm.report import Page, plot_learning_curves

BREAK = 0.9
"""Fraction of the metric of the photos as they are below which a corruption breaks the model."""

_ABOUT = (
    "Kinds and strengths of noise, blur, weather and digital are those of ImageNet-C (Hendrycks and Dietterich, 2019), "
    "whose mean corruption error is a ratio to that of AlexNet; this one is the plain mean of the errors. Photos were "
    "brought to 256 pixels first where they are larger, and lengths in pixels follow the size of the picture."
)
_SIDE = 256
_NUM_RESAMPLES = 200


FAMILIES: dict[str, dict[str, Corruption]] = {**IMAGENET_C, "everyday": EVERYDAY}
"""Corruptions by family; the first four are the 15 of ImageNet-C."""
PHOTO_CORRUPTIONS: dict[str, Corruption] = {
    kind: corruption for family in FAMILIES.values() for kind, corruption in family.items()
}
"""Corruptions of photos by kind."""
COMMON = frozenset(kind for family in IMAGENET_C.values() for kind in family)
"""Kinds that the mean corruption error is of."""


def choose_kinds(
    kinds: str,
    corruptions: Mapping[str, Corruption] = PHOTO_CORRUPTIONS,
    *,
    locates: bool = False,
) -> list[str]:
    """Return the kinds that are named, separated by commas; all where none is.

    Args:
        kinds: Keys of the corruptions, separated by commas.
        corruptions: Corruptions that there are, by kind.
        locates: Whether the model says where things are, so that kinds that move them are left out.

    Raises:
        OptionError: There is no such kind, or it moves what the boxes of the truth are around.
    """
    choices = [kind for kind in corruptions if not (locates and kind in MOVING)]
    names = [name.strip() for name in kinds.split(",") if name.strip()] or choices
    for name in names:
        if name not in corruptions:
            raise OptionError(
                f"There is no corruption '{name}' (--kinds). Choices: {', '.join(choices)}."
            )
        if name not in choices:
            raise OptionError(
                f"--kinds names '{name}', which moves what is in the picture, so that boxes are not where they were. "
                f"Choices: {', '.join(choices)}."
            )
    return names


def corrupt_photo(
    pixels: Pixels, corruption: Corruption, level: float, generator: np.random.Generator
) -> Pixels:
    """Degrade a photo, uint8 [H, W, 3], at the size that it would be looked at: 256 pixels on the shorter side at most.

    It comes back at its old size, so that boxes in its pixels stay true.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, _SIDE / min(height, width))
    small = pixels
    if scale < 1:
        size = (max(1, round(scale * width)), max(1, round(scale * height)))
        small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    small = corruption.apply(small, level, generator)
    if small.shape == pixels.shape:
        return small
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def measure_robustness(
    model: AuditedModel,
    data: AuditedData,
    keys: Sequence[str] | None,
    kinds: Sequence[str],
    *,
    num_images: int = 200,
    rule_groups: Sequence[str | None] | None = None,
    positive: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return the headline metric under each corruption, ready for JSON.

    Args:
        model: Model that is audited, checkpoint or bundle.
        data: Images with their labels, all or more than are looked at.
        keys: What belongs together, a key for each image; None where each stands alone.
        kinds: Corruptions to measure, keys of `PHOTO_CORRUPTIONS`.
        num_images: Most images that are looked at under every corruption, spread evenly.
        rule_groups: Group of each image, by whose rules it is predicted; None for the general rule.
        positive: Label whose rates count; None for the usual one.
        batch_size: Images that go through the model at once.
        seed: Seed of noise, filters and intervals.
        progress: Told how long it will take.
    """
    chosen = np.unique(
        np.linspace(0, len(data.records) - 1, min(num_images, len(data.records))).round()
    ).astype(int)
    records = [data.records[i] for i in chosen.tolist()]
    part = None if keys is None else [keys[i] for i in chosen.tolist()]
    groups = None if rule_groups is None else [rule_groups[i] for i in chosen.tolist()]

    def measure(corruption: Corruption | None, level: float) -> dict[str, Any]:
        def change(pixels: Pixels, index: int) -> Pixels:
            if corruption is None:
                return pixels
            generator = np.random.default_rng(sample_seed(seed, 0, index))
            return corrupt_photo(pixels, corruption, level, generator)

        predicted = predict_images(
            model, records, batch_size=batch_size, change=change, groups=groups
        )
        positions = predicted.positions.tolist()
        outcomes = model.kind.judge(
            [records[i] for i in positions],
            predicted.predictions,
            data.columns,
            model.labels,
            positive,
        )
        named = None if part is None else [part[i] for i in positions]
        return estimate_row(outcomes, named, seed)

    return measure_curves(
        measure,
        {kind: PHOTO_CORRUPTIONS[kind] for kind in kinds},
        families=FAMILIES,
        averaged=[kind for kind in kinds if kind in COMMON] or list(kinds),
        about=_ABOUT,
        unit="photos",
        progress=progress,
    )


def estimate_row(outcomes: Outcomes, keys: Sequence[str] | None, seed: int) -> dict[str, Any]:
    """Return the headline metric with its interval, its name and the number of images, ready for JSON."""
    metric, number = outcomes.metrics[0], len(outcomes.predicted)
    sampler = ClusterSampler.from_keys(keys, number, seed)
    sampler.num_resamples = _NUM_RESAMPLES
    interval = sampler.estimate(metric)
    values = {"value": None, "low": None, "high": None}
    row = values if interval is None else interval.to_dict()
    return {"metric": metric.name, "num_images": number, **row}


def measure_curves(
    measure: Callable[[Corruption | None, float], dict[str, Any]],
    corruptions: Mapping[str, Corruption],
    *,
    families: Mapping[str, Iterable[str]],
    averaged: Sequence[str],
    about: str,
    unit: str,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return what is left under each corruption, ready for JSON.

    Args:
        measure: Function that measures a row, as `estimate_row` makes it, under a corruption and level; None for the
            images as they are.
        corruptions: Corruptions that there are, by kind.
        families: Kinds by the family that they are drawn with.
        averaged: Kinds that the mean corruption error is of.
        about: How images are degraded, for the reader.
        unit: What rows are of, in the plural: photos or videos.
        progress: Told how long it will take.
    """
    start = time.perf_counter()
    clean = measure(None, 0.0) | {"level": 0.0, "text": "as they are"}
    seconds = time.perf_counter() - start
    number = sum(len(corruption.levels) for corruption in corruptions.values())
    progress(
        f"{number} corruptions of {clean['num_images']} {unit}: {max(1, round(number * seconds / 60))} minutes or "
        "more, by the pace of these images as they are ..."
    )
    curves = {
        kind: [
            measure(corruption, level) | {"level": level, "text": corruption.text.format(level)}
            for level in corruption.levels
        ]
        for kind, corruption in corruptions.items()
    }
    errors = {
        kind: 1 - float(np.mean([row["value"] or 0.0 for row in rows]))
        for kind, rows in curves.items()
    }
    return {
        "metric": clean["metric"],
        "num_images": clean["num_images"],
        "unit": unit,
        "about": about,
        "clean": clean,
        "curves": curves,
        "families": {
            name: chosen
            for name, members in families.items()
            if (chosen := [kind for kind in members if kind in curves])
        },
        "corruption_error": errors,
        "mean_corruption_error": float(np.mean([errors[kind] for kind in averaged])),
        "averaged": list(averaged),
        "breaks_first": find_first_break(clean["value"], curves),
    }


def find_first_break(
    clean: float | None, curves: dict[str, list[dict[str, Any]]]
) -> dict[str, Any] | None:
    """Return the weakest corruption under which less than 90 % of the metric is left; None where none does that."""
    broken = [
        (index / len(rows), row["value"] or 0.0, kind, row)
        for kind, rows in curves.items()
        for index, row in enumerate(rows)
        if clean and (row["value"] or 0.0) < BREAK * clean
    ]
    if not broken:
        return None
    _, value, kind, row = min(broken, key=lambda each: each[:2])
    return {"kind": kind, "level": row["level"], "text": row["text"], "value": value}


def describe_robustness(result: Mapping[str, Any]) -> str:
    """Say in a sentence or two what is left, and what breaks first."""
    text = (
        f"Mean corruption error {result['mean_corruption_error']:.3f} over {len(result['averaged'])} kinds "
        f"({1 - (result['clean']['value'] or 0.0):.3f} of the {result['num_images']} {result['unit']} as they are)."
    )
    first = result["breaks_first"]
    if first is None:
        return f"{text} None takes a tenth of the {result['metric']}."
    return f"{text} What breaks first: {first['text']}, {result['metric']} {first['value']:.3f}."


def draw_robustness(result: Mapping[str, Any], family: str) -> bytes:
    """Return the curves of the corruptions of a family, from weak to strong, as PNG."""
    series = {
        kind.replace("_", " "): [
            (float(index), *(row[name] for name in ("value", "low", "high")))
            for index, row in enumerate([result["clean"], *result["curves"][kind]])
            if row["value"] is not None
        ]
        for kind in result["families"][family]
    }
    return plot_learning_curves({result["metric"]: series}, xlabel="strength, 0 as they are")


def add_robustness(page: Page, result: Mapping[str, Any], sheet: bytes = b"") -> None:
    """Add what is left under each corruption to the page of an audit, with a sheet of what was done to an image."""
    page.add_heading("Robustness")
    page.add_text(describe_robustness(result))
    page.add_text(result["about"])
    for family in result["families"]:
        page.add_figure(
            draw_robustness(result, family),
            f"{family.capitalize()}: from weak to strong, with 95 % intervals",
        )
    page.add_table(
        [
            {
                "corruption": kind.replace("_", " "),
                **{f"strength {i + 1}": row["value"] for i, row in enumerate(rows)},
                "mean error": result["corruption_error"][kind],
            }
            for kind, rows in result["curves"].items()
        ]
    )
    if "rates" in result["clean"]:
        rows = [row for each in result["curves"].values() for row in each]
        page.add_table(
            [
                {"pictures": row["text"], result["metric"]: row["value"]}
                | {name.replace("_", " "): value for name, value in row["rates"].items()}
                for row in (result["clean"], *rows)
            ]
        )
    if sheet:
        page.add_figure(sheet, "One image under each corruption, as the model sees it")
