"""Accuracy of an ONNX graph: one headline metric of its answers for real validation images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vfm_runtime.bundle import providers
from vfm_runtime.bundle.manifest import hash_file
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.multi_head import select_head

from vfm.tasks.validation import Run, Validation


def open_run(file: Path) -> Run:
    """Open an ONNX file, which takes and gives what `model.onnx` does, on the CPU."""
    session = providers.open_session(file, "cpu")
    names = [port.name for port in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


class AccuracyMeter:
    """Measures ONNX files that take and give what `model.onnx` does, on validation images.

    Attributes:
        metric: Name of the headline metric; of several heads `1 - largest drop`.
        validations: Validation images by the names of the heads.
        baseline: The metric of the graph of float32 by head.
    """

    def __init__(self, validations: Mapping[str, Validation], baseline: Path) -> None:
        """Measure the graph of float32, which all others are compared with; a single head's name is empty."""
        self.validations = dict(validations)
        single = self.validations.get("")
        self.metric = "1 - largest drop" if single is None else single.metric
        self._measured: dict[str, dict[str, float]] = {}
        self.baseline = self.measure_heads(baseline)

    @property
    def num_images(self) -> int:
        """Number of images that the metric is measured on."""
        return sum(validation.num_images for validation in self.validations.values())

    def measure_heads(self, file: Path) -> dict[str, float]:
        """Return the headline metric of each head, 0 to 1."""
        # A search comes back to files that it has seen, and to that of float32.
        key = hash_file(file)
        if key not in self._measured:
            run = open_run(file)
            self._measured[key] = {
                name: images.measure(select_head(images.collect_outputs(run), name))
                for name, images in self.validations.items()
            }
        return self._measured[key]

    def measure(self, file: Path) -> float:
        """Return the one metric, of which a drop is counted."""
        return self.combine(self.measure_heads(file))

    def combine(self, metrics: Mapping[str, float]) -> float:
        """Return one metric for those of all heads."""
        if "" in metrics:
            return metrics[""]
        return 1 - max(self.baseline[name] - value for name, value in metrics.items())
