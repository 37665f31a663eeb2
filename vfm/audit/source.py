"""Audit source: a checkpoint or a bundle, labelled images, their groups from a table, and predictions by one path."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import vfm_runtime
from numpy.typing import NDArray
from vfm_runtime.bundle.model import Model
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.errors import OptionError, VfmError, suggest
from vfm_runtime.media.image import ImageError
from vfm_runtime.tasks.base import Arrays, Opened, Prediction
from vfm_runtime.tasks.confidence import soften_scores

from vfm.audit.kinds import KINDS, AuditKind
from vfm.audit.leaks import find_leaks
from vfm.audit.null_score import read_null_values
from vfm.bundle.ood import Reference, embed, score_ood
from vfm.data import ImageData
from vfm.data.file_metadata import Metadata
from vfm.data.group_columns import read_columns
from vfm.data.records import Record, read_source
from vfm.data.table_rows import find_table
from vfm.data.tables import read_table
from vfm.spec import Spec
from vfm.tasks.checkpoint import Checkpoint, find_copies
from vfm.tasks.labels import match_labels
from vfm.tasks.predictor import TorchPredictor

_SPLITS = ("test", "val")
_AHEAD = 3
_MOST_THREADS = 8


class AuditError(VfmError, ValueError):
    """An audit cannot be made of this model, these images or these groups."""


@dataclass(eq=False)
class AuditedModel:
    """A model that is audited: a predictor, and where it is a checkpoint what this says of the training."""

    path: Path
    predictor: Predictor
    kind: AuditKind
    checkpoint: Checkpoint | None = None
    notes: list[str] = field(default_factory=list)
    """What the reader must know of how the model was opened."""
    reference: Reference | None = None
    """What measures distances from the training images of a checkpoint; None where that was not asked for."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the scores."""
        return self.predictor.labels

    @property
    def training(self) -> Spec:
        """Spec of the data of the training; empty where it is not known."""
        return {} if self.checkpoint is None else self.checkpoint.data_spec or {}

    @property
    def device(self) -> str:
        """Device that it runs on, such as `cpu` or `cuda`."""
        if self.checkpoint is not None:
            return self.checkpoint.task.device.type
        assert isinstance(self.predictor, Model)
        return self.predictor.device

    def choose_embedding(self) -> bool:
        """Choose the usual vectors; whether there are any, which the reader is told."""
        self.predictor.choose_embedding()
        if self.predictor.embedding is None:
            self.notes.append(
                "The bundle gives no embeddings, so groups were looked for by plain traits alone. Export it with "
                "--embedding pooled."
            )
        return self.predictor.embedding is not None

    def run(self, inputs: Arrays) -> Arrays:
        """Compute what the bundle does: of a checkpoint the temperature of its calibration is applied here."""
        outputs = self.predictor.compute_outputs(inputs)
        temperature = self.predictor.task_type.confidence.temperature
        if self.checkpoint is None or temperature == 1.0 or "scores" not in outputs:
            return outputs
        divided = soften_scores(
            outputs["scores"], temperature, multilabel=self.predictor.multilabel
        )
        return {**outputs, "scores": divided}


def open_model(path: Path, checkpoint: Checkpoint | None, *, device: str = "auto") -> AuditedModel:
    """Open the predictor of a checkpoint, or of the folder of a bundle.

    Raises:
        AuditError: It is of a task whose predictions no audit can judge.
    """
    notes: list[str] = []
    if checkpoint is None:
        predictor: Predictor = vfm_runtime.load(path, device=device, precision="fp32")
    else:
        checkpoint.task.require_trained()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        predictor = TorchPredictor(checkpoint.task.to(torch.device(device)).eval())
        if (calibration := checkpoint.calibration) is not None:
            predictor.task_type.read_rules(calibration.rules.to_dict())
            if calibration.groups is not None:
                predictor.task_type.set_group_rules(calibration.groups.rules)
            notes.append("The calibration beside the checkpoint is applied, as in its bundle.")
    task_type = predictor.task_type
    if task_type.name not in KINDS:
        remedy = (
            "Audit the checkpoint that it was exported from."
            if checkpoint is None
            else "Give another model."
        )
        raise AuditError(
            f"{path} {task_type.summary} (task '{task_type.name}'), which no audit can judge from "
            f"{'a bundle' if checkpoint is None else 'here'}. Choices: {', '.join(KINDS)}. {remedy}"
        )
    return AuditedModel(path, predictor, KINDS[task_type.name], checkpoint, notes)


class AuditedData(NamedTuple):
    """Images to audit a model on, not yet opened."""

    source: str
    """What they are, in words."""
    records: list[Record]
    columns: list[int] | None
    """For each label of the data its index among the model's; None where nothing says what the images show."""
    table: Path | None
    """Table that has a row for each image; None where there is none."""
    path_column: str
    notes: list[str]
    leaks: dict[str, Any]
    """Copies of training images among them, as `find_leaks` returns them."""

    def read_columns(
        self, names: Sequence[str], table: Path | None, option: str
    ) -> dict[str, list[str]]:
        """Return columns of the table of the images; errors are those of `vfm.data.group_columns.read_columns`."""
        return read_columns(
            self.records,
            names,
            table or self.table,
            option,
            source=self.source,
            path_column=self.path_column,
        )


def open_data(model: AuditedModel, path: Path | None, split: str | None) -> AuditedData:
    """Find the images: the test split of the training, or those of a folder or a table.

    Args:
        model: Model that is audited.
        path: Folder or table; None for the data of the training.
        split: Split that is taken; None for test where there is one, else val, else all.

    Raises:
        AuditError: There are no images, or the model was trained or calibrated on them.
        ValidationError: The data of the training is not there any more.
        LabelError: The labels are not those of the model.
    """
    notes: list[str] = []
    if path is None:
        if model.checkpoint is None:
            raise AuditError(
                f"{model.path} is a bundle, which names no data. Give a folder or a table of images with labels: "
                "--data PATH."
            )
        name = split or "test"
        images = model.checkpoint.split(name)  # type: ignore[arg-type]
        return _describe(
            model,
            images.data,
            model.kind.select(images.records),
            f"the {name} split of the training",
            notes,
        )
    if not path.exists():
        raise AuditError(f"There is no {path} (looked in {Path.cwd()}). Check --data.")
    if model.kind.has_labels(path, model.training, model.labels):
        data = model.kind.open_data(path, model.training, model.labels)
        named = [split] if split else [s for s in _SPLITS if data.records.get(s)][:1]
        names = named or [s for s, records in data.records.items() if records]
        records = [record for name in names for record in data.records.get(name, [])]
        if not records:
            raise AuditError(
                f"{path} has no {split or 'labelled'} images. Splits: {', '.join(data.records) or 'none'}. Name one of "
                "them, or leave --split out."
            )
        data_name = f"{path}, {' and '.join(names)}" if named else str(path)
        described = _describe(model, data, model.kind.select(records), data_name, notes)
        _require_uncalibrated(model, described.records)
        return described
    data = model.kind.open_unlabeled(path)
    data.setup("predict")
    notes.append(
        "The data has no labels: only what needs none was looked at (confidence, and how often what is predicted)."
    )
    described = _describe(model, data, data.records["predict"], str(path), notes)
    return described._replace(columns=None)


def _describe(
    model: AuditedModel, data: ImageData, records: Sequence[Record], source: str, notes: list[str]
) -> AuditedData:
    columns = match_labels(data, model.labels, model.predictor.multilabel) if data.labels else None
    leaks, more = refuse_leaks(model.checkpoint, records)
    notes += more
    table, path_column = getattr(data, "table", None), getattr(data, "path_column", "path")
    return AuditedData(source, list(records), columns, table, path_column, notes, leaks)


def refuse_leaks(
    checkpoint: Checkpoint | None, records: Sequence[Record]
) -> tuple[dict[str, Any], list[str]]:
    """Return the copies of training images as `find_leaks` does, and what the reader must know of them.

    Raises:
        AuditError: They are half of the images or more.
    """
    leaks = find_leaks(checkpoint, records)
    number = len(leaks["copies"])
    if not number or checkpoint is None:
        return leaks, []
    if 2 * number >= len(records):
        raise AuditError(
            f"{number} of these {len(records)} images are training images of {checkpoint.path}: what a model has "
            "learned by heart says nothing of what it can do. Audit it on others."
        )
    return leaks, [f"{number} of {len(records)} images were trained on: figures are too good."]


def _require_uncalibrated(model: AuditedModel, records: Sequence[Record]) -> None:
    """Refuse images that the model was calibrated on, as far as that can be known."""
    if model.checkpoint is None or model.checkpoint.calibration is None:
        return
    try:
        others = model.checkpoint.split("val").records
    except VfmError:
        return  # the data of the training is gone, which the page says
    number = len(find_copies(records, others))
    if 2 * number >= len(records):
        raise AuditError(
            f"{number} of these {len(records)} images are those that {model.path} was validated and calibrated on, "
            "so its scores fit them better than others. Audit it on others, such as a test split."
        )


def read_rule_groups(
    model: AuditedModel, data: AuditedData, table: Path | None
) -> list[str | None] | None:
    """Return the group of each image by whose rules the model predicts; None of a model without rules by group.

    What holds is noted for the reader: where there is no such column, or a group that the model does not know, the
    general rule.
    """
    rules = model.predictor.task_type.group_rules
    if rules is None:
        return None
    path = table or data.table
    if path is None or not find_table(path) or rules.column not in read_table(path).columns:
        model.notes.append(
            f"The model has rules by {rules.column}, but there is no such column: the general rule was audited."
        )
        return None
    values = data.read_columns([rules.column], table, "--table")[rules.column]
    groups = [value if value in rules.groups else None for value in values]
    number = sum(group is not None and rules.groups[group] is not None for group in groups)
    model.notes.append(
        f"The model has rules by {rules.column}: {number} of {len(groups)} images were predicted by those of their "
        f"group, the others by the general rule. {rules.criterion}"
    )
    return groups


class PredictedImages(NamedTuple):
    """What a model says of the images that could be read. N images."""

    positions: NDArray[np.int64]
    """[N], index of each image among all records."""
    predictions: list[Prediction]
    vectors: NDArray[np.float32] | None
    """[N, D], embeddings; None where none were asked for."""
    values: list[Metadata]
    """What each image has beside its content: metadata of its file, its border and look; empty where none was read."""
    skipped: dict[str, str]
    """The reason by the name of each image that could not be read."""
    seconds: float
    """Time from the first file to the last answer."""
    model_seconds: float
    """Part of it that the model itself took."""


class _Prepared(NamedTuple):
    opened: Opened
    inputs: Arrays | None
    values: Metadata


def predict_images(
    model: AuditedModel,
    records: Sequence[Record],
    *,
    batch_size: int = 32,
    embeds: bool = False,
    change: Any = None,
    groups: Sequence[str | None] | None = None,
) -> PredictedImages:
    """Predict for images, opened in threads ahead of the model, in order.

    Args:
        model: Model that is audited.
        records: Images that the model predicts for.
        batch_size: Images that go through the model at once.
        embeds: Whether embeddings are computed too.
        change: Function of an image's pixels, uint8 [H, W, 3], and its index, that changes them first; None for none.
        groups: Group of each image, by whose rules it is predicted; None for the general rule for all.

    Raises:
        AuditError: None can be read.
    """
    predictor = model.predictor
    start, model_seconds = time.perf_counter(), 0.0

    def prepare(index: int) -> _Prepared | str:
        try:
            source = read_source(records[index])
            content = Path(source).read_bytes() if isinstance(source, str) else source
            pixels = predictor.open_pixels(content)
            values: Metadata = {}
            if change is None:
                values = read_null_values(content if isinstance(content, bytes) else None, pixels)
            else:
                pixels = change(pixels, index)
            opened = predictor.task_type.open(pixels)
            return _Prepared(opened, predictor.prepare_all(opened), values)
        except (ImageError, OSError) as error:
            return getattr(error, "reason", str(error))

    positions: list[int] = []
    predictions: list[Prediction] = []
    rows: list[Metadata] = []
    skipped: dict[str, str] = {}
    vectors: list[NDArray[np.float32]] = []
    for batch in _iterate_ahead(prepare, len(records), batch_size):
        skipped |= {records[i].name: each for i, each in batch if isinstance(each, str)}
        good = [(i, each) for i, each in batch if isinstance(each, _Prepared)]
        parts = [each.inputs for _, each in good if each.inputs is not None]
        if not parts:
            continue
        inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        count = len(next(iter(inputs.values())))
        begun = time.perf_counter()
        chunks = [
            model.run({name: v[k : k + batch_size] for name, v in inputs.items()})
            for k in range(0, count, batch_size)
        ]
        model_seconds += time.perf_counter() - begun
        outputs = {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}
        if model.reference is not None:
            assert isinstance(predictor, TorchPredictor)
            # Beside the answers, whose time is measured: a bundle's graph gives both at once.
            outputs |= score_ood(model.reference, embed(predictor.task, [inputs]))
        if embeds:
            vectors.append(predictor.embed_prepared(inputs))
        begin = 0
        for index, each in good:
            end = begin + len(each.opened.images)
            part = {name: values[begin:end] for name, values in outputs.items()}
            task = predictor.task_type.for_group(None if groups is None else groups[index])
            predictions.append(task.predict(each.opened, part))
            positions.append(index)
            rows.append(each.values)
            begin = end
    if not predictions:
        name, reason = next(iter(skipped.items()))
        raise AuditError(
            f"None of the {len(records)} images can be read, such as {name}: {reason} Give others with --data."
        )
    joined = np.concatenate(vectors) if embeds else None
    seconds = time.perf_counter() - start
    return PredictedImages(
        np.array(positions), predictions, joined, rows, skipped, seconds, model_seconds
    )


def _iterate_ahead(
    prepare: Any, number: int, batch_size: int
) -> Iterator[list[tuple[int, _Prepared | str]]]:
    """Yield images by the batch, in order, opened ahead in threads: decoding and resizing leave Python's lock."""
    with ThreadPoolExecutor(min(_MOST_THREADS, count_usable_cores())) as pool:
        pending: deque[Future[_Prepared | str]] = deque()
        batch: list[tuple[int, _Prepared | str]] = []
        for index in range(number + _AHEAD * batch_size):
            if index < number:
                pending.append(pool.submit(prepare, index))
            if index >= _AHEAD * batch_size and pending:
                batch.append((index - _AHEAD * batch_size, pending.popleft().result()))
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def require_known(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        OptionError: With the choices, and those near.
    """
    if value not in choices:
        raise OptionError(
            f"--{option} is '{value}'.{suggest(value, choices)} Choices: {', '.join(choices)}."
        )
