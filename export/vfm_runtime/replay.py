"""Replaying a bundle's golden images: the same answers here as where it was exported?"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm_runtime import providers
from vfm_runtime.bundle import BundleError
from vfm_runtime.contract import GOLDEN_DIR, GOLDEN_FILE, ONEFILE_FILE, parse_json
from vfm_runtime.image import open_image
from vfm_runtime.model import Model, expect_ports
from vfm_runtime.types import Prediction


@dataclass(frozen=True)
class Golden:
    """One image and what the model answered to it at export."""

    file: str
    """Name of the image, relative to the bundle."""

    scores: NDArray[np.float32]
    """Its scores at export."""

    label: str
    """Its best label at export."""


@dataclass(frozen=True)
class Replay:
    """What became of one golden image; printed as one line."""

    name: str
    """The image, and the ONNX file where it is not the usual pair."""

    difference: float
    """The largest difference of a score."""

    label: str
    """The best label now."""

    expected: str
    """The best label at export."""

    tolerance: float
    """The largest difference allowed."""

    @property
    def passed(self) -> bool:
        """Whether the answer is the one of the export."""
        return self.difference <= self.tolerance and self.label == self.expected

    def __str__(self) -> str:
        word = "OK" if self.passed else "DIFFERS"
        label = self.label if self.label == self.expected else f"{self.label}, not {self.expected}"
        return (
            f"{self.name}: {word} ({label}; largest difference {self.difference:.2g}, "
            f"allowed {self.tolerance:.2g})"
        )


def replay(model: Model) -> list[Replay]:
    """Ask the model about each golden image again, also through `onefile.onnx` if there is one.

    Args:
        model: The loaded bundle.

    Raises:
        BundleError: The bundle has no golden images, or their list is malformed.
    """
    tolerance, images = read_golden(model)
    answers = model.predict([model.path / image.file for image in images])
    pairs = list(zip(images, answers, strict=True))
    results = [_compare(image.file, image, answer, tolerance) for image, answer in pairs]
    if ONEFILE_FILE in model.manifest.files:
        results += _replay_onefile(model, images, tolerance)
    return results


def read_golden(model: Model) -> tuple[float, list[Golden]]:
    """Return the tolerance and the golden images of a bundle.

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
        tolerance = float(values["tolerance"])
        images = [_golden(item) for item in values["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is malformed ({error!r}). Export the bundle anew.") from error
    for image in images:
        if image.file not in model.manifest.files:
            raise BundleError(f"{path} names {image.file}, which the bundle does not list.")
        if image.scores.shape != (len(model.labels),):
            raise BundleError(
                f"{path} holds {image.scores.size} scores for {image.file}; the model has "
                f"{len(model.labels)} labels. Export the bundle anew."
            )
    if not images or not tolerance > 0:
        raise BundleError(f"{path} has no images or no tolerance above 0. Export the bundle anew.")
    return tolerance, images


def _golden(item: dict[str, Any]) -> Golden:
    scores = np.array(item["scores"], dtype=np.float32)
    return Golden(str(PurePosixPath(GOLDEN_DIR, item["file"])), scores, str(item["label"]))


def _replay_onefile(model: Model, images: list[Golden], tolerance: float) -> list[Replay]:
    path = model.path / ONEFILE_FILE
    session = providers.open_session(path, model.device)
    expect_ports(session, path, "image", "scores")
    results = []
    for image in images:
        rows = session.run(None, {"image": open_image(model.path / image.file)})[0]
        answer = model.answer(rows[0])
        results.append(_compare(f"{image.file} ({ONEFILE_FILE})", image, answer, tolerance))
    return results


def _compare(name: str, image: Golden, answer: Prediction, tolerance: float) -> Replay:
    difference = float(np.abs(answer.scores - image.scores).max())
    return Replay(name, difference, answer.label, image.label, tolerance)
