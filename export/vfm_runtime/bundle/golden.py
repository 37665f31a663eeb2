"""Replaying a bundle's golden images: the same answers here as where it was exported?"""

from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from vfm_runtime.bundle import providers
from vfm_runtime.bundle.compare import Agreement, agreement
from vfm_runtime.bundle.contract import (
    DEEPFAKE,
    GOLDEN_DIR,
    GOLDEN_FILE,
    ONEFILE_FILE,
    SEVERAL,
    HeadContract,
    parse_json,
    ports,
)
from vfm_runtime.bundle.manifest import BundleError
from vfm_runtime.bundle.model import IMAGE, Model, expect_ports
from vfm_runtime.bundle.predictor import Answer, Arrays, HeadAnswer, head_answers
from vfm_runtime.deepfake.verdict import FAKE, REAL, UNDECIDED, Reason, Verdict
from vfm_runtime.media.image import open_image
from vfm_runtime.tasks.classification import Prediction
from vfm_runtime.tasks.detection import Detections

TOLERANCE = {"fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
"""Largest difference of a score from one machine to another: what is rounded coarsely falls to either side of a step by
the last digit of a float."""

_TYPES = {"float": np.float32, "int64": np.int64}


@dataclass(frozen=True)
class Golden:
    """One image and what the model answered to it at export."""

    file: str
    """Name of the image, relative to the bundle."""

    answer: Answer
    """The answer at export."""


@dataclass(frozen=True)
class Replay:
    """What became of one golden image; printed as one line."""

    name: str
    """The image, and the ONNX file where it is not the usual pair."""

    agreement: Agreement
    """The answer at export against the answer now."""

    tolerance: float
    """The largest difference of a score allowed."""

    @property
    def passed(self) -> bool:
        """Whether the answer is the one of the export."""
        return self.agreement.difference <= self.tolerance and not self.agreement.changed

    def __str__(self) -> str:
        difference, changed, expected, found = self.agreement
        word = "OK" if self.passed else "DIFFERS"
        label = f"{found}, not {expected}" if changed else found
        return (
            f"{self.name}: {word} ({label}; largest difference {difference:.2g}, "
            f"allowed {self.tolerance:.2g})"
        )


def replay(model: Model) -> list[Replay]:
    """Ask the model about each golden image again, also through `onefile.onnx` if there is one.

    Args:
        model: The loaded bundle; its own precision is compared with the answers of that precision at export.

    Raises:
        BundleError: The bundle has no golden images, or their list is malformed.
    """
    tolerance, images = read_golden(model)
    # The golden images of a deepfake model are crops.
    cropped = model.judge is not None
    rough = model.precision != "fp32"
    results = []
    for image in images:
        # One by one, as they were asked at export: in int8 an answer depends on the others of its batch.
        answer = model.predict(model.path / image.file, cropped=cropped)
        found = agreement(image.answer, answer, rough=rough)
        results.append(Replay(image.file, found, tolerance))
    if ONEFILE_FILE in model.manifest.files and model.precision == "fp32":
        results += _replay_onefile(model, images, tolerance)
    return results


def read_golden(model: Model) -> tuple[float, list[Golden]]:
    """Return the tolerance and the golden images of a bundle, for the precision that runs.

    Args:
        model: The loaded bundle.

    Raises:
        BundleError: There are none, or their list is malformed.
    """
    path = model.path / GOLDEN_FILE
    if GOLDEN_FILE not in model.manifest.files:
        raise BundleError(
            f"{model.path} has no golden images, so its answers cannot be checked; its files are "
            "intact. Export it anew with images at hand."
        )
    try:
        values = parse_json(path.read_bytes())
        if model.precision in values.get("precisions", {}):
            values = values["precisions"][model.precision]
        # bfloat16 is computed from the graph of float32, and has its golden answers.
        tolerance = max(float(values["tolerance"]), TOLERANCE.get(model.precision, 0.0))
        images = [_golden(item, model) for item in values["images"]]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is malformed ({error!r}). Export the bundle anew.") from error
    for image in images:
        if image.file not in model.manifest.files:
            raise BundleError(f"{path} names {image.file}, which the bundle does not list.")
    if not images or not tolerance > 0:
        raise BundleError(f"{path} has no images or no tolerance above 0. Export the bundle anew.")
    return tolerance, images


def golden_row(file: str, answer: Answer) -> dict[str, Any]:
    """What `golden.json` says of an image.

    Args:
        file: Its name in the folder of golden images; of a deepfake model, that of a crop.
        answer: The one to be replayed; of a deepfake model, by `predict(crop, cropped=True)`.

    Raises:
        ValueError: A verdict is not that of one crop.
    """
    if isinstance(answer, dict):
        return {"file": file, "heads": {name: _row(one) for name, one in answer.items()}}
    return {"file": file, **_row(answer)}


def _row(answer: HeadAnswer) -> dict[str, Any]:
    if isinstance(answer, Verdict):
        return _golden_verdict(answer)
    if isinstance(answer, Detections):
        row = {"boxes": answer.boxes.tolist(), "labels": answer.class_ids.tolist()}
    else:
        row = {"label": answer.label}
    row["scores"] = answer.scores.tolist()
    return row if answer.distance is None else {**row, "distances": answer.distance}


def _golden(item: dict[str, Any], model: Model) -> Golden:
    answer: Answer
    if model.judge is not None:
        (bare,) = model.judge.bare(_arrays(item, DEEPFAKE))
        answer = _read_verdict(bare, item)
    elif model.kind == SEVERAL:
        answer = {name: _read(head, item["heads"][name]) for name, head in model.heads.items()}
    else:
        answer = _read(model.heads[""], item)
    return Golden(str(PurePosixPath(GOLDEN_DIR, item["file"])), answer)


def _read(head: HeadContract, row: dict[str, Any]) -> HeadAnswer:
    arrays = _arrays(row, head.task)
    if "distances" in row:
        arrays["distances"] = np.array([row["distances"]], np.float32)
    (answer,) = head_answers(head, arrays)
    return replace(answer, label=str(row["label"])) if isinstance(answer, Prediction) else answer


def _arrays(row: dict[str, Any], task: str) -> Arrays:
    return {name: np.array([row[name]], _TYPES[kind]) for name, kind in ports(task)[1].items()}


def _golden_verdict(verdict: Verdict) -> dict[str, Any]:
    heatmaps = [frame.heatmap for frame in verdict.frames]
    if len(heatmaps) != 1 or heatmaps[0] is None:
        raise ValueError(
            f"A golden answer is that of one crop; this verdict is of {len(heatmaps)} crops. "
            "Take predict(crop, cropped=True)."
        )
    (frame,) = verdict.frames
    return {
        "label": verdict.label,
        "reason": None if verdict.reason is None else verdict.reason.value,
        "score": verdict.score,
        "logits": frame.logit,
        "heatmaps": heatmaps[0].tolist(),
        "distances": frame.distance,
    }


def _read_verdict(bare: Verdict, item: dict[str, Any]) -> Verdict:
    """The verdict of the export: rules of quality, which need the crop's pixels, are not applied anew."""
    reason = None if item["reason"] is None else Reason(item["reason"])
    score = None if item["score"] is None else float(item["score"])
    if item["label"] not in (REAL, FAKE, UNDECIDED):
        raise ValueError(f"'label' is {item['label']!r}")
    return replace(bare, label=item["label"], reason=reason, score=score)


def _replay_onefile(model: Model, images: list[Golden], tolerance: float) -> list[Replay]:
    path = model.path / ONEFILE_FILE
    session = providers.open_session(path, model.device)
    outputs = model.contract.ports()[1]
    expect_ports(session, path, IMAGE, outputs)
    results = []
    for image in images:
        found = session.run(list(outputs), {"image": open_image(model.path / image.file)})
        answers = dict(zip(outputs, found, strict=True))
        if model.judge is None:
            (answer,) = model.answers(answers)
        else:
            evidence = model.judge.evidence(model.path / image.file, cropped=True)
            answer = model.judge.verdict(evidence, answers)
        name = f"{image.file} ({ONEFILE_FILE})"
        results.append(Replay(name, agreement(image.answer, answer), tolerance))
    return results
