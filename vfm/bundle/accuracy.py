"""One figure for a graph: how well it answers for real validation images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from vfm_runtime.bundle import providers
from vfm_runtime.bundle.manifest import hash_file
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.multi_head import select_head

from vfm.tasks.validation import Run, Validation


def runner(file: Path) -> Run:
    """What an ONNX file answers, on the CPU.

    Args:
        file: It takes and gives what `model.onnx` does.
    """
    session = providers.open_session(file, "cpu")
    names = [port.name for port in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


class Measure:
    """Answers for the validation images by an ONNX file, on the CPU.

    Attributes:
        metric: Name of the figure; of several heads `1 - largest drop`.
        validations: By the names of the heads.
    """

    def __init__(self, validations: Mapping[str, Validation], baseline: Path) -> None:
        """Measure the graph of float32, which all others are compared with.

        Args:
            validations: By the names of the heads; that of a single one is empty.
            baseline: The graph of float32.
        """
        self.validations = dict(validations)
        single = self.validations.get("")
        self.metric = "1 - largest drop" if single is None else single.metric
        self._known: dict[str, dict[str, float]] = {}
        self.baseline = self.figures(baseline)

    @property
    def num_images(self) -> int:
        """Images that the figure is of."""
        return sum(validation.num_images for validation in self.validations.values())

    def figures(self, file: Path) -> dict[str, float]:
        """The headline figure of each head, 0 to 1.

        Args:
            file: An ONNX file that takes and gives what `model.onnx` does.
        """
        # A search comes back to files that it has seen, and to that of float32.
        key = hash_file(file)
        if key not in self._known:
            run = runner(file)
            self._known[key] = {
                name: images.measure(select_head(images.collect_outputs(run), name))
                for name, images in self.validations.items()
            }
        return self._known[key]

    def __call__(self, file: Path) -> float:
        """The one figure, of which a drop is counted.

        Args:
            file: As for `figures`.
        """
        return self.overall(self.figures(file))

    def overall(self, figures: Mapping[str, float]) -> float:
        """One figure of those of all heads.

        Args:
            figures: Of `figures`.
        """
        if "" in figures:
            return figures[""]
        return 1 - max(self.baseline[name] - value for name, value in figures.items())

    def samples(self, count: int, batch_size: int) -> list[Arrays]:
        """Batches of validation images of the first head, spread evenly.

        Args:
            count: How many images.
            batch_size: Images of a batch.
        """
        images = next(iter(self.validations.values()))
        step = max(1, images.num_images // count)
        chosen = list(images.images.iterate_batches(1))[::step][:count]
        batches = (chosen[at : at + batch_size] for at in range(0, len(chosen), batch_size))
        return [{n: np.concatenate([row[n] for row in b]) for n in b[0]} for b in batches]
