"""Several heads on one backbone: the predictions of each head by its name."""

from collections.abc import Mapping
from typing import Any, Self

from vfm_runtime.tasks.base import Agreement, Arrays, Prediction, PredictionView, TaskType
from vfm_runtime.tasks.registry import MULTI_HEAD


class HeadPredictions(dict[str, Prediction], Prediction):
    """The prediction of each head for one image, by the name of the head."""

    @property
    def task(self) -> str:
        """The task `multi_head`."""
        return MULTI_HEAD

    def to_dict(self, view: PredictionView = PredictionView()) -> dict[str, Any]:
        """Return the plain values of each head under `heads`, each of which names its own task."""
        heads = {name: prediction.to_dict(view) for name, prediction in self.items()}
        return {"task": self.task, "heads": heads}

    def headline(self, view: PredictionView = PredictionView()) -> str:
        """Return the prediction of every head in one line."""
        return " | ".join(self.lines(view))

    def lines(self, view: PredictionView = PredictionView()) -> list[str]:
        """Return a line for each head."""
        return [f"{name}: {prediction.headline(view)}" for name, prediction in self.items()]

    def compare(self, other: Self, *, approximate: bool = False) -> Agreement:
        """Compare head by head; the one that differs most counts."""
        rows = {
            name: prediction.compare(other[name], approximate=approximate)
            for name, prediction in self.items()
        }
        name, worst = max(rows.items(), key=lambda row: (row[1].changed, row[1].difference))
        return worst._replace(
            expected=f"{name}: {worst.expected}", actual=f"{name}: {worst.actual}"
        )

    def to_golden(self) -> dict[str, Any]:
        """Return the golden values of each head."""
        return {"heads": {name: prediction.to_golden() for name, prediction in self.items()}}


class MultiHeadType(TaskType):
    """Heads of other tasks, each bound to its own labels and rules; its outputs are named `head.output`."""

    name = MULTI_HEAD
    summary = "has several heads"

    def __init__(self, heads: Mapping[str, TaskType]) -> None:
        """Join heads, by name, in the order of the outputs."""
        super().__init__(tuple(heads))
        self._heads = dict(heads)
        self.inputs = {k: v for head in heads.values() for k, v in head.inputs.items()}
        self.outputs = {
            f"{name}.{port}": dtype
            for name, head in heads.items()
            for port, dtype in head.outputs.items()
        }

    @property
    def heads(self) -> Mapping[str, TaskType]:
        """What each head answers, by its name."""
        return self._heads

    @property
    def has_reference(self) -> bool:
        """Whether the graph measures distances; they are of the backbone, which all heads share."""
        return any(head.has_reference for head in self._heads.values())

    def predictions(self, outputs: Arrays) -> list[HeadPredictions]:
        """Return the predictions of all heads for each image."""
        parts = [head.predictions(select_head(outputs, name)) for name, head in self._heads.items()]
        return [
            HeadPredictions(zip(self._heads, row, strict=True)) for row in zip(*parts, strict=True)
        ]

    def read_golden(self, row: Mapping[str, Any]) -> HeadPredictions:
        """Rebuild the prediction of each head."""
        return HeadPredictions(
            {name: head.read_golden(row["heads"][name]) for name, head in self._heads.items()}
        )

    def check_shapes(self, shapes: Mapping[str, Any]) -> None:
        """Refuse a graph whose outputs do not go with the labels of a head."""
        for name, head in self._heads.items():
            head.check_shapes(select_head(shapes, name))


def select_head(outputs: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Return the outputs of one of several heads by their bare names, and what all heads share.

    Args:
        outputs: Outputs by name, `head.output`; those that all heads share have no dot.
        head: Name of the head; the empty one of a single head has all.
    """
    if not head:
        return dict(outputs)
    shared = {name: values for name, values in outputs.items() if "." not in name}
    prefix = f"{head}."
    return shared | {
        name.removeprefix(prefix): values
        for name, values in outputs.items()
        if name.startswith(prefix)
    }
