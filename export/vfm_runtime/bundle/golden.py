"""Golden answers: replaying a bundle's golden images, to see that it answers here as where it was exported."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from vfm_runtime.bundle import providers
from vfm_runtime.bundle.contract import GOLDEN_DIR, GOLDEN_FILE, ONEFILE_FILE, parse_json
from vfm_runtime.bundle.model import IMAGE, Model, expect_ports
from vfm_runtime.errors import BundleError
from vfm_runtime.media.image import open_image
from vfm_runtime.tasks.base import Agreement, Prediction

TOLERANCE = {"fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
"""Largest difference of a score from one machine to another: what is rounded coarsely falls to either side of a step by
the last digit of a float."""


@dataclass(frozen=True)
class Golden:
    """One image and what the model answered to it at export."""

    file: str
    """Name of the image, relative to the bundle."""

    prediction: Prediction
    """The prediction at export."""


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
        results += _replay_onefile(model, images, tolerance)
    return results


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


def _replay_onefile(model: Model, images: list[Golden], tolerance: float) -> list[Replay]:
    path = model.path / ONEFILE_FILE
    session = providers.open_session(path, model.device)
    names = list(model.contract.ports()[1])
    expect_ports(session, path, IMAGE, model.contract.ports()[1])
    results = []
    for image in images:
        source = model.path / image.file
        rows = session.run(names, {"image": open_image(source)})
        opened = model.task_type.open(source, cropped=model.task_type.uses_crops)
        prediction = model.task_type.predict(opened, dict(zip(names, rows, strict=True)))
        name = f"{image.file} ({ONEFILE_FILE})"
        results.append(Replay(name, image.prediction.compare(prediction), tolerance))
    return results
