"""Explanations of boxes: gradient-weighted maps of the score of one box, and how much that score hangs on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.base import Prediction

from vfm.audit.attribution import compute_box_map, score_box
from vfm.audit.explain import Answer, ExplainedPicture, choose_images
from vfm.audit.source import AuditedModel
from vfm.data.records import Record, read_source
from vfm.metrics.detection import DetectedBoxes, match_image
from vfm.tasks.detection.results import select_truth

ABOUT_BOXES = (
    "Of boxes the map is what each place adds to the score of the box, to first order: gradient times activation of "
    "every feature map that the head reads, place by place (ODAM; Zhao et al., 2024). The score while pixels change is "
    "the highest of a box of the class times its overlap (IoU) with the box that is explained (D-RISE; Petsiuk et al., "
    "2021). Explained are the best right box and the best false alarm of an image, of those at the thresholds of "
    "production; what is missed has no map. Of an image in tiles the tile is shown in which the box was found."
)


def require_gradients(model: AuditedModel) -> None:
    """Refuse a bundle, whose boxes no map explains.

    Raises:
        OptionError: It is one.
    """
    if model.checkpoint is None:
        raise OptionError(
            f"--explain needs gradients to explain boxes, and {model.path} is a bundle, which has none. Audit the "
            "checkpoint that it was exported from, or leave it out."
        )


def list_box_answers(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    columns: Sequence[int],
    labels: Sequence[str],
    number: int,
    seed: int = 0,
) -> list[Answer]:
    """List the boxes to explain: of each image its best right box and its best false alarm may be chosen.

    Args:
        records: Record of each of N images.
        predictions: What was predicted for each of these images.
        columns: For each label of the data its index among the model's.
        labels: Label names of the model.
        number: Most boxes: half of them right ones, by chance, and half the most confident false alarms.
        seed: Seed of the choice.
    """
    answers = []
    parts: Sequence[Any] = predictions
    for index, (record, prediction) in enumerate(zip(records, parts, strict=True)):
        shown = prediction.above()
        boxes = DetectedBoxes(shown.boxes, shown.class_ids, shown.scores)
        matched = match_image(select_truth(record, [record], columns), boxes)
        for right, chosen in ((True, matched >= 0), (False, matched == -1)):
            if chosen.any():
                best = int(np.where(chosen, shown.scores, -1).argmax())
                label, score = int(shown.class_ids[best]), float(shown.scores[best])
                truth = labels[label] if right else "no such object"
                answers.append(Answer(index, truth, label, score, right, shown.boxes[best]))
    rights = np.array([each.right for each in answers], bool)
    scores = np.array([each.score for each in answers])
    return [answers[i] for i in choose_images(rights, scores, number, seed)]


def list_box_pictures(
    model: AuditedModel, records: Sequence[Record], answers: Sequence[Answer]
) -> Iterator[ExplainedPicture]:
    """Yield a picture with its map for each box that is to be explained: the image, or the tile that shows the box.

    Args:
        model: Checkpoint that is audited.
        records: Records of the N images that were predicted.
        answers: Boxes that are to be explained, as `list_box_answers` returns them.
    """
    assert model.checkpoint is not None
    task, predictor = model.checkpoint.task, model.predictor
    for index, truth, label, score, right, corners in answers:
        opened = predictor.task_type.open(predictor.open_pixels(read_source(records[index])))
        inputs = predictor.prepare_all(opened)
        assert inputs is not None
        best, parts = -1.0, None
        for tile, (pixels, row) in enumerate(
            zip(inputs["pixels"], inputs["geometry"], strict=True)
        ):
            offset = row[:2] if opened.context is None else row[:2] + opened.context[tile][:2]
            # As fractions of what the model sees.
            box = (corners - np.tile(offset, 2)) / np.tile(row[2:4], 2)
            (similarity,) = score_box(task, box, label, pixels[None])
            if similarity > best:
                best, parts = similarity, (pixels, box)
        assert parts is not None
        pixels, box = parts
        yield ExplainedPicture(
            records[index].name,
            truth,
            model.labels[label],
            score,
            right,
            pixels,
            partial(score_box, task, box, label),
            {"box": compute_box_map(task, pixels[None], box, label)},
            box * np.tile(pixels.shape[1::-1], 2),
        )
