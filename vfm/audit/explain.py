"""Explanations of an audit: maps of some images, each beside its deletion and insertion score and random maps'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError
from vfm_runtime.media.drawing import draw_boxes
from vfm_runtime.media.image import Pixels

from vfm.audit.attribution import Map, compute_grad_cam, split_logit
from vfm.audit.comparison import Bools, Floats
from vfm.audit.deletion import NUM_RANDOM, Scores, enlarge_map, score_map, score_random_maps
from vfm.audit.kinds import Outcomes
from vfm.audit.linear_graph import open_linear_graph
from vfm.audit.source import AuditedModel
from vfm.data.records import Record, read_source
from vfm.report import Page, draw_contact_sheet
from vfm.tasks.base import BaseTask

MapFunction = Callable[[NDArray[np.uint8], int], dict[str, Map]]
"""Maps a picture, uint8 [1, H, W, 3], and the index of a label to maps by name."""
NAMES = {
    "grad_cam": "Grad-CAM",
    "patches": "patch contributions",
    "heatmap": "the model's own heatmap",
    "box": "contributions to the box",
}
"""What maps are called, by their name in the JSON."""

_ABOUT = (
    "Grad-CAM (Selvaraju et al., 2017) weighs the last feature maps by the gradient of the predicted label; patch "
    "contributions are what each place adds to its logit, exactly, where a linear head reads the mean over the places. "
    "Below each map stands the gain: the mean score while the pixels that it calls important are put into a blurred "
    "picture (insertion), less that while they are taken out (deletion; Petsiuk et al., 2018). The frame is green "
    f"where that is more than for each of {NUM_RANDOM} random maps of the same grid, which chance does once in "
    f"{NUM_RANDOM + 1}; where it is red, the map explains nothing."
)
_OPACITY = 0.6


class Answer(NamedTuple):
    """A label that the model gives to an image, for which a map is drawn."""

    image: int
    """Index of the image."""
    truth: str
    """What is true of the image, or of the box, in a word or two."""
    label: int
    """Index of the label."""
    score: float
    """Probability of the label."""
    right: bool
    """Whether it applies."""
    corners: NDArray[np.float32] | None = None
    """Left, top, right and bottom of the box that has the label, in pixels of the image, [4]; None of a whole image."""


class ExplainedPicture(NamedTuple):
    """A picture with the score that is explained of it, and the maps that shall do so."""

    name: str
    """Name of the image."""
    truth: str
    """What is true of it, in a word or two."""
    predicted: str
    """What the score is of, in a word or two."""
    score: float
    """Probability of it."""
    right: bool
    """Whether it applies."""
    pixels: Pixels
    """Picture at the model's size, uint8 [H, W, 3]."""
    compute_scores: Scores
    """Gives the score for pictures of that size."""
    maps: Mapping[str, Map]
    """Maps by name."""
    corners: NDArray[np.floating] | None = None
    """Left, top, right and bottom of the box whose score it is, in pixels of the picture, [4]; None of the whole."""


def choose_images(right: Bools, confidence: Floats, number: int, seed: int = 0) -> list[int]:
    """Choose images to explain: half of them right ones, by chance, and half the most confident mistakes.

    Args:
        right: Whether the predicted label is right, bool [N].
        confidence: Score of the predicted label, [N].
        number: Most images that are chosen, right and wrong ones.
        seed: Seed of the choice.

    Returns:
        Indices, right ones first.
    """
    wrong = np.flatnonzero(~right)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][: number // 2]
    rest = np.flatnonzero(right)
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(rest)[: number - len(mistakes)]
    return [*sorted(chosen.tolist()), *mistakes.tolist()]


def list_answers(
    outcomes: Outcomes, labels: Sequence[str], number: int, seed: int = 0
) -> list[Answer]:
    """List the labels to explain: that of each chosen image, or where several may apply each that is given.

    Of such a model an image is right where all that is given is; no label that is missing can be explained.

    Args:
        outcomes: Predictions of N images, with their truth.
        labels: Label names of the model.
        number: Most images that are chosen, right and wrong ones.
        seed: Seed of the choice.

    Returns:
        None at all where several may apply and no image is given one.
    """
    assert outcomes.truth is not None
    if outcomes.asserted is None:
        assert outcomes.right is not None
        assert outcomes.confidence is not None
        return [
            Answer(
                i,
                outcomes.truth[i],
                labels.index(outcomes.predicted[i]),
                float(outcomes.confidence[i]),
                bool(outcomes.right[i]),
            )
            for i in choose_images(outcomes.right, outcomes.confidence, number, seed)
        ]
    assert outcomes.target is not None
    assert outcomes.scores is not None
    asserted, scores = outcomes.asserted, outcomes.scores
    wrong = asserted & (outcomes.target == 0)
    answered = np.flatnonzero(asserted.any(axis=1))
    confidence = np.where(wrong, scores, 0.0).max(axis=1)
    chosen = choose_images(~wrong.any(axis=1)[answered], confidence[answered], number, seed)
    return [
        Answer(i, outcomes.truth[i], k, float(scores[i, k]), not wrong[i, k])
        for i in answered[chosen].tolist()
        for k in np.flatnonzero(asserted[i]).tolist()
    ]


def open_maps(model: AuditedModel) -> MapFunction:
    """Return what computes the maps of a picture at the model's size, by name.

    Of a bundle these are patch contributions alone, where its graph ends in a linear layer on a mean over the places.

    Raises:
        OptionError: The model is a bundle with another end.
    """
    if model.checkpoint is not None:
        return partial(compute_maps, model.checkpoint.task)
    file = model.path / "model.onnx"
    graph = open_linear_graph(file) if file.is_file() else None
    if graph is None:
        raise OptionError(
            f"--explain needs gradients, or a linear layer on the mean over the places of a picture at the end of the "
            f"graph, and {model.path} is a bundle without. Audit the checkpoint that it was exported from, or leave it "
            "out."
        )
    return lambda pixels, label: {"patches": graph.split_logit(pixels, label)}


def list_pictures(
    model: AuditedModel,
    compute: MapFunction,
    records: Sequence[Record],
    answers: Sequence[Answer],
) -> Iterator[ExplainedPicture]:
    """Yield the image of each label that is to be explained, with its maps.

    Args:
        model: Model that is audited.
        compute: Function that computes the maps, as `open_maps` returns it.
        records: Records of the N images that were predicted.
        answers: Labels that are to be explained, as `list_answers` returns them.
    """
    for index, truth, label, score, right, _ in answers:
        pixels = model.predictor.prepare(read_source(records[index]))["pixels"]
        yield ExplainedPicture(
            records[index].name,
            truth,
            model.labels[label],
            score,
            right,
            pixels[0],
            partial(_compute_scores, model, label),
            compute(pixels, label),
        )


def _compute_scores(
    model: AuditedModel, label: int, pixels: NDArray[np.uint8]
) -> NDArray[np.floating]:
    scores: NDArray[np.floating] = model.run({"pixels": pixels})["scores"][:, label]
    return scores


def require_number(number: int) -> None:
    """Refuse a number of images to explain that is none.

    Raises:
        OptionError: It is below 0.
    """
    if number < 0:
        raise OptionError(f"--explain is {number}. Give the number of images, 0 for none.")


def explain_pictures(
    pictures: Iterable[ExplainedPicture], seed: int = 0, about: str = ""
) -> tuple[dict[str, Any], bytes]:
    """Measure the maps of some pictures, and draw them.

    Args:
        pictures: What is explained, right answers first; one or more, all with the same kinds of maps.
        seed: Seed of the random maps.
        about: What is explained of each, for the reader, where that is not its label.

    Returns:
        The result, ready for JSON, and a sheet with a row for each picture, as PNG.
    """
    rows: list[dict[str, Any]] = []
    cells: list[tuple[Pixels, str, bool]] = []
    for each in pictures:
        row: dict[str, Any] = {
            "image": each.name,
            "truth": each.truth,
            "predicted": each.predicted,
            "score": each.score,
            "right": each.right,
        }
        row |= measure_maps(each, seed)
        caption = f"{each.truth}\n-> {each.predicted} {each.score:.2f}"
        cells.append((draw_corners(each.pixels, each.corners), caption, each.right))
        for name, values in each.maps.items():
            result = row["maps"][name]
            caption = f"{NAMES[name]}\ngain {result['gain']:+.2f}, random {row['random_gain']:+.2f}"
            blended = draw_corners(blend_map(each.pixels, values), each.corners)
            cells.append((blended, caption, result["explains"]))
        rows.append(row)
    images, captions, marks = zip(*cells, strict=True)
    columns = len(cells) // len(rows)
    cell = 170 if columns > 2 else 300
    sheet = draw_contact_sheet(images, captions, columns=columns, cell=cell, marks=marks)
    summary = {
        name: {
            "num_explaining": sum(row["maps"][name]["explains"] for row in rows),
            "mean_gain": float(np.mean([row["maps"][name]["gain"] for row in rows])),
        }
        for name in rows[0]["maps"]
    }
    random = float(np.mean([row["random_gain"] for row in rows]))
    return {"about": about, "images": rows, "maps": summary, "random_gain": random}, sheet


def compute_maps(task: BaseTask, pixels: NDArray[np.uint8], label: int) -> dict[str, Map]:
    """Return the maps of a picture at the model's size, uint8 [1, H, W, 3], that the model allows, by name."""
    maps = {"grad_cam": compute_grad_cam(task, pixels, label)}
    patches = split_logit(task, pixels, label)
    return maps if patches is None else {**maps, "patches": patches}


def measure_maps(picture: ExplainedPicture, seed: int) -> dict[str, Any]:
    """Return the scores of the maps of a picture and whether they explain more than each of some random maps."""
    pixels, compute_scores = picture.pixels, picture.compute_scores
    random: dict[tuple[int, int], list[float]] = {}
    results = {}
    for name, values in picture.maps.items():
        shape = (values.shape[0], values.shape[1])
        if shape not in random:
            scored = score_random_maps(shape, pixels, compute_scores, seed=seed)
            random[shape] = [each.gain for each in scored]
        score = score_map(values, pixels, compute_scores)
        # A map of one value has no order, so that its gain is that of the rows from top to bottom.
        explains = bool(np.ptp(values) > 0) and score.gain > max(random[shape])
        results[name] = {**score.to_dict(), "explains": explains}
    gains = [gain for each in random.values() for gain in each]
    return {"maps": results, "random_gain": float(np.mean(gains))}


def draw_corners(pixels: Pixels, corners: NDArray[np.floating] | None) -> Pixels:
    """Draw the box that is explained, [4], on a picture, uint8 [H, W, 3]; None leaves it as it is."""
    return pixels if corners is None else draw_boxes(pixels, corners[None], colors=["#00e5ff"])


def blend_map(pixels: Pixels, values: Map) -> Pixels:
    """Draw a map over a picture, uint8 [H, W, 3]: what speaks for the label glows, the more the stronger."""
    heat = enlarge_map(values, (pixels.shape[0], pixels.shape[1])).clip(min=0)
    heat = heat / max(float(heat.max()), 1e-12)
    colors = cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    strength = (_OPACITY * heat)[..., None]
    dimmed = 0.7 * pixels + 0.3 * pixels.mean()
    blended: Pixels = np.rint(dimmed * (1 - strength) + colors[..., ::-1] * strength).astype(
        np.uint8
    )
    return blended


def list_explanations(result: Mapping[str, Any] | None) -> list[str]:
    """Return a sentence for each kind of map on how many images it explains; none where there are no maps."""
    if result is None:
        return []
    number = len(result["images"])
    return [
        f"{NAMES[name][0].upper()}{NAMES[name][1:]}: more than all random maps for {row['num_explaining']} of {number} "
        f"images (mean gain {row['mean_gain']:+.3f}, of random maps {result['random_gain']:+.3f})."
        for name, row in result["maps"].items()
    ]


def add_explanations(page: Page, result: Mapping[str, Any], sheet: bytes) -> None:
    """Add the maps to the page of an audit."""
    page.add_heading("Explanations")
    page.add_text(_ABOUT)
    if result["about"]:
        page.add_text(result["about"])
    for sentence in list_explanations(result):
        page.add_text(sentence)
    if {"grad_cam", "box"}.isdisjoint(result["maps"]):
        page.add_text("Without Grad-CAM, which takes gradients: a bundle has none.")
    elif {"patches", "box"}.isdisjoint(result["maps"]):
        page.add_text(
            "Without patch contributions: the head is not linear, or the vector that it reads is no mean over the "
            "places, as a class token is none."
        )
    page.add_figure(sheet, "Right predictions, then the most confident mistakes (red)")
    page.add_table(
        [
            {
                "image": row["image"],
                "truth": row["truth"],
                "predicted": row["predicted"],
                "score": row["score"],
                "map": NAMES[name],
                **{k: scores[k] for k in ("deletion", "insertion", "gain")},
                "random": row["random_gain"],
                "explains": "yes" if scores["explains"] else "no",
            }
            for row in result["images"]
            for name, scores in row["maps"].items()
        ]
    )
