"""Golden answers: replaying a bundle's golden images, to see that it answers here as where it was exported."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vfm_runtime.bundle import providers
from vfm_runtime.bundle.contract import GOLDEN_DIR, GOLDEN_FILE, ONEFILE_FILE, parse_json
from vfm_runtime.bundle.model import IMAGE, Model, expect_ports
from vfm_runtime.errors import BundleError, DataError
from vfm_runtime.media.image import open_image
from vfm_runtime.tasks.base import Agreement, Arrays, Prediction

TOLERANCE = {"fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
"""Largest difference of a score from one machine to another: what is rounded coarsely falls to either side of a step by
the last digit of a float."""


class Golden(NamedTuple):
    """One image, and the prediction of the model for it at export."""

    file: str
    """Name of the image, relative to the bundle."""
    prediction: Prediction


class Replay(NamedTuple):
    """Outcome of one golden image; printed as one line."""

    name: str
    """Name of the image, and of the ONNX file where it is not the usual pair."""
    agreement: Agreement
    """The prediction at export against the prediction now."""
    tolerance: float
    """Largest difference of a score allowed."""

    @property
    def passed(self) -> bool:
        """Whether the prediction is the one of the export."""
        return self.agreement.difference <= self.tolerance and not self.agreement.changed

    def __str__(self) -> str:
        difference, changed, expected, actual = self.agreement
        word = "OK" if self.passed else "DIFFERS"
        label = f"{actual}, not {expected}" if changed else actual
        return (
            f"{self.name}: {word} ({label}; largest difference {difference:.2g}, "
            f"allowed {self.tolerance:.2g})"
        )


def replay(model: Model) -> list[Replay]:
    """Replay each golden image in the model's precision, also through `onefile.onnx` if there is one.

    Raises:
        BundleError: The bundle has no golden images, or their list is malformed.
    """
    tolerance, images = read_golden(model)
    approximate = model.precision != "fp32"
    results = []
    for image in images:
        # One by one, as they were asked at export: in int8 a prediction depends on the others of its batch.
        prediction = model.predict(model.path / image.file, cropped=model.task_type.uses_crops)
        agreement = image.prediction.compare(prediction, approximate=approximate)
        results.append(Replay(image.file, agreement, tolerance))
    if ONEFILE_FILE in model.manifest.files and model.precision == "fp32":
        path = model.path / ONEFILE_FILE
        session = providers.open_session(path, model.device)
        outputs = model.contract.ports()[1]
        expect_ports(session, path, IMAGE, outputs)

        def run(image: Golden) -> Arrays:
            pixels = open_image(model.path / image.file)
            rows = session.run(list(outputs), {"image": pixels})
            return dict(zip(outputs, rows, strict=True))

        for result in _replay_outputs(model, images, tolerance, run):
            results.append(result._replace(name=f"{result.name} ({ONEFILE_FILE})"))
    return results


def judge_answers(model: Model, path: Path) -> list[Replay]:
    """Compare what another client answered to the golden images, in fp32, with the answers of the export.

    The file is JSON, `{"images": [{"file": ..., "outputs": {name: {"data": [...], "dims": [1, ...]}}}]}`, with the
    outputs of `model.onnx` for each image of `golden.json`.

    Raises:
        BundleError: The bundle has no golden images, or their list is malformed.
        DataError: The file is malformed, or an image has no answer.
    """
    tolerance, images = read_golden(model)
    if model.contract.tiling is not None:
        raise DataError(
            f"{model.path} cuts images into tiles, and {path} would hold outputs for whole images. Compare the boxes "
            f"of your client with those of {GOLDEN_FILE}."
        )
    dtypes = {"float": np.float32, "int64": np.int64}
    answers = {}
    try:
        for row in parse_json(path.read_bytes())["images"]:
            sizes = [row["outputs"][name]["dims"][0] for name in model.contract.ports()[1]]
            if set(sizes) != {1}:
                raise DataError(f"the first of dims is {sizes}, not 1")
            answers[f"{GOLDEN_DIR}/{row['file']}"] = {
                name: np.array(row["outputs"][name]["data"], dtypes[kind]).reshape(
                    row["outputs"][name]["dims"]
                )
                for name, kind in model.contract.ports()[1].items()
            }
        missing = [image.file for image in images if image.file not in answers]
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} holds no answers to golden images ({error!r}). Write it with a client such as those in examples/."
        ) from error
    if missing:
        raise DataError(f"{path} has no answer to {missing[0]}. Ask about every golden image.")
    return list(_replay_outputs(model, images, tolerance, lambda image: answers[image.file]))


def read_golden(model: Model) -> tuple[float, list[Golden]]:
    """Return the tolerance and the golden images of a loaded bundle, for the precision that runs.

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
        images = [
            Golden(str(PurePosixPath(GOLDEN_DIR, row["file"])), model.task_type.read_golden(row))
            for row in values["images"]
        ]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is malformed ({error!r}). Export the bundle anew.") from error
    for image in images:
        if image.file not in model.manifest.files:
            raise BundleError(f"{path} names {image.file}, which the bundle does not list.")
    if not images or not tolerance > 0:
        raise BundleError(f"{path} has no images or no tolerance above 0. Export the bundle anew.")
    return tolerance, images


def _replay_outputs(
    model: Model, images: list[Golden], tolerance: float, run: Callable[[Golden], Arrays]
) -> Iterator[Replay]:
    for image in images:
        source = model.path / image.file
        opened = model.task_type.open(source, cropped=model.task_type.uses_crops)
        prediction = model.task_type.predict(opened, run(image))
        yield Replay(image.file, image.prediction.compare(prediction), tolerance)
