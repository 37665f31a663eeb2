"""What a bundle promises: the schema that the training side writes and the runtime reads."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NoReturn, Self

from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.deepfake.verdict import VERDICT_LABELS
from vfm_runtime.tasks.confidence import Rules
from vfm_runtime.validation import is_deep, shown

METADATA_KEY = "vfm"
"""Key of the contract's JSON in the `metadata_props` of each ONNX file."""

FORMAT = 1
"""The newest bundle format that this version reads."""

DETECTION = "detection"
DEEPFAKE = "deepfake"

TASKS = ("classification", "multilabel", DETECTION, DEEPFAKE)
"""The tasks that this version can answer: one label an image, any number of them, objects with boxes, or whether an
image or a video is real or fake."""

_LABELLING = ({"pixels": "uint8"}, {"scores": "float"})
_FINDING = (
    {"pixels": "uint8", "geometry": "float"},
    {"boxes": "float", "labels": "int64", "scores": "float"},
)
_JUDGING = (
    {"pixels": "uint8"},
    {"logits": "float", "heatmaps": "float", "distances": "float"},
)

SEVERAL = "several"
"""The task of a bundle with several heads on one backbone."""

PREPROCESS_FILE = "preprocess.onnx"
MODEL_FILE = "model.onnx"
PRECISION_FILES = {"fp32": MODEL_FILE, "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
"""The graph of each precision that a bundle may have; the first is always there."""
WEIGHTS_FILE = "model.onnx.data"
ONEFILE_FILE = "onefile.onnx"
MANIFEST_FILE = "vfm.json"
PARITY_FILE = "parity.json"
CARD_FILE = "card.md"
REFERENCE_FILE = "reference.json"
GOLDEN_DIR = "golden"
GOLDEN_FILE = "golden/golden.json"

_PLACE = {"components": "float", "distances": "float"}
_OPTIONAL = ("rules", "heads")
_REMEDY = "Export the bundle anew with this version of vfm."


class ContractError(ValueError):
    """The contract of a bundle is incomplete, malformed or newer than this version."""


@dataclass(frozen=True, kw_only=True)
class HeadContract:
    """What one head answers; checked when made."""

    task: str
    """What it does; one of `TASKS`."""

    labels: tuple[str, ...]
    """Class names, as of the contract."""

    rules: dict[str, Any] | None = None
    """When and how it answers, as of the contract."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _labels(self.labels))
        if self.task not in TASKS:
            _refuse("task", self.task, f"one of {', '.join(TASKS)}", "Upgrade vfm-runtime.")
        object.__setattr__(self, "rules", _rules(self.task, self.labels, self.rules))

    @cached_property
    def surely(self) -> Rules:
        """When an answer of a model that labels images or finds objects is sure."""
        return Rules() if self.rules is None else Rules.from_dict(self.rules)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        values = {"task": self.task, "labels": list(self.labels)}
        return values if self.rules is None else {**values, "rules": _plain("rules", self.rules)}


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model takes, what it answers, and where it comes from; checked when made."""

    task: str
    """What the model does; one of `TASKS`, or `several` where it has several heads."""

    labels: tuple[str, ...]
    """Class names, in the order of the columns of `scores`; of a detector, by its `labels`; `real` and `fake` of a
    deepfake model; the names of several heads."""

    preprocess: dict[str, Any]
    """How `preprocess.onnx` makes pixels; plain values, with `size` as [height, width]."""

    backbone: str
    """Name of the backbone the model was trained from."""

    license: str | None
    """Licence of the weights, or None where it is not known."""

    versions: dict[str, str]
    """Version by package of what wrote the bundle."""

    format: int = FORMAT
    """Version of this schema."""

    rules: dict[str, Any] | None = None
    """Of a deepfake model, how it is asked and answers: `crop`, a `CropSpec`, and `decision`, a `Decision`, as plain
    values. Of every other model the values of `Rules`, or None, and then the contract does not name it."""

    heads: dict[str, HeadContract] | None = None
    """Each of several heads by its name; None of one head, whose contract then does not name it."""

    def __post_init__(self) -> None:
        # Trainers pass lists and tuples; files can only hold lists. One form makes `==` meaningful.
        object.__setattr__(self, "labels", _labels(self.labels))
        _check_format(self.format)
        if self.task not in (*TASKS, SEVERAL):
            _refuse("task", self.task, f"one of {', '.join(TASKS)}", "Upgrade vfm-runtime.")
        if not isinstance(self.backbone, str) or not self.backbone:
            _refuse("backbone", self.backbone, "a name")
        if self.license is not None and not isinstance(self.license, str):
            _refuse("license", self.license, "a string or null")
        object.__setattr__(self, "preprocess", _preprocess(self.preprocess))
        object.__setattr__(self, "versions", _versions(self.versions))
        if self.task == SEVERAL and self.rules is not None:
            _refuse("rules", self.rules, "null: each of several heads has its own")
        if self.task != SEVERAL:
            object.__setattr__(self, "rules", _rules(self.task, self.labels, self.rules))
        object.__setattr__(self, "heads", _heads(self.task, self.labels, self.heads))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels that the model takes."""
        height, width = self.preprocess["size"]
        return height, width

    @property
    def each(self) -> dict[str, HeadContract]:
        """What each head answers, by its name; the name of a single one is empty."""
        if self.heads is not None:
            return dict(self.heads)
        return {"": HeadContract(task=self.task, labels=self.labels, rules=self.rules)}

    def ports(self) -> tuple[dict[str, str], dict[str, str]]:
        """Names and element types of what `model.onnx` takes and of its answers.

        The answers of several heads are named `head.answer`.
        """
        inputs: dict[str, str] = {}
        outputs: dict[str, str] = {}
        for name, head in self.each.items():
            takes, gives = ports(head.task)
            inputs |= takes
            outputs |= {f"{name}.{port}" if name else port: kind for port, kind in gives.items()}
        return inputs, outputs | (_PLACE if self.reference else {})

    @property
    def reference(self) -> bool:
        """Whether the graph also says where an image lies among those of the training."""
        return any(head.task != DEEPFAKE and head.surely.reference for head in self.each.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as plain values that JSON can hold."""
        values = {
            "task": self.task,
            "labels": list(self.labels),
            "preprocess": _plain("preprocess", self.preprocess),
            "backbone": self.backbone,
            "license": self.license,
            "versions": dict(self.versions),
            "format": self.format,
        }
        if self.rules is not None:
            values["rules"] = _plain("rules", self.rules)
        if self.heads is not None:
            values["heads"] = {name: head.to_dict() for name, head in self.heads.items()}
        return values

    def to_json(self) -> str:
        """Return one JSON text for one contract: sorted keys, no spaces, ASCII only."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a contract from plain values and check every one of them.

        Args:
            values: What `to_dict` returned.

        Raises:
            ContractError: A key is missing, unknown or holds a value it cannot hold.
        """
        if not isinstance(values, Mapping):
            _refuse("contract", values, "a JSON object")
        names = [field.name for field in fields(cls)]
        # A newer format may have other keys, so its number is looked at before the keys are.
        for name in ["format", *names]:
            if name not in values and name not in _OPTIONAL:
                raise ContractError(f"The contract has no key '{name}'. {_REMEDY}")
            if name == "format":
                _check_format(values["format"])
        for name in values:
            # Refused, not ignored: a damaged key name must not pass as an extra.
            if name not in names:
                expected = ", ".join(names)
                raise ContractError(
                    f"The contract has an unknown key {name!r}. Known: {expected}. {_REMEDY}"
                )
        try:
            return cls(**values)
        except RecursionError as error:
            raise ContractError(f"The contract is nested too deeply. {_REMEDY}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build a contract from the JSON text that `to_json` returned.

        Args:
            text: The JSON text, as found in the metadata of an ONNX file.

        Raises:
            ContractError: The text is not JSON, or not a contract.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ContractError(f"The contract is not valid JSON: {error}. {_REMEDY}") from error
        return cls.from_dict(values)


def ports(task: str) -> tuple[dict[str, str], dict[str, str]]:
    """Names and element types of what `model.onnx` takes, all of which `preprocess.onnx` gives, and of its answers.

    Args:
        task: One of `TASKS`.
    """
    return {DETECTION: _FINDING, DEEPFAKE: _JUDGING}.get(task, _LABELLING)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON strictly: no key twice, no NaN or Infinity.

    Python's parser keeps the last of two equal keys, which would let a damaged key name hide
    another entry.

    Args:
        text: JSON text, or its UTF-8 bytes.

    Raises:
        ValueError: The text is not strict JSON.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object holds the same key twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(key: str, value: object, expected: str, remedy: str = _REMEDY) -> NoReturn:
    raise ContractError(f"The contract's '{key}' is {shown(value)}; expected {expected}. {remedy}")


def _is_int(value: object) -> bool:
    # In Python True is an int; in a contract it is a mistake.
    return isinstance(value, int) and not isinstance(value, bool)


def _check_format(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _refuse("format", value, f"a whole number from 1 to {FORMAT}")
    if value > FORMAT:
        raise ContractError(
            f"The bundle was written by a newer vfm: its format is {value}, this version reads up "
            f"to {FORMAT}. To read it, upgrade vfm-runtime: pip install --upgrade vfm-runtime."
        )


def _labels(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        _refuse("labels", value, "a list of at least one name")
    names: set[str] = set()
    for name in value:
        if not isinstance(name, str) or not name:
            _refuse("labels", name, "names that are strings and not empty")
        if name in names:
            _refuse("labels", name, "each name once")
        names.add(name)
    return tuple(value)


def _plain(key: str, value: object) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        _refuse(key, value, f"plain JSON values ({error})")


def _preprocess(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse("preprocess", value, "an object with the key 'size'")
    if is_deep(value):
        _refuse("preprocess", value, "values that are not nested so deeply")
    plain: dict[str, Any] = _plain("preprocess", value)
    size = plain.get("size")
    expected = "[height, width], two whole numbers above 0"
    if not isinstance(size, list) or len(size) != 2:
        _refuse("preprocess.size", size, expected)
    if not all(_is_int(side) and side > 0 for side in size):
        _refuse("preprocess.size", size, expected)
    return plain


def _versions(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        _refuse("versions", value, "an object of package to version")
    for name, version in value.items():
        if not isinstance(name, str) or not isinstance(version, str):
            _refuse("versions", {name: version}, "strings only")
    return dict(value)


def _rules(task: str, labels: tuple[str, ...], value: object) -> dict[str, Any] | None:
    if task == DEEPFAKE:
        return _verdict_rules(labels, value)
    if value is None:
        return None
    try:
        rules = Rules.from_dict(value)  # type: ignore[arg-type]  # it refuses what is no object
        rules.check_labels(labels)
    except ValueError as error:
        raise ContractError(f"The contract's 'rules' do not hold: {error} {_REMEDY}") from error
    return rules.to_dict()


def _verdict_rules(labels: tuple[str, ...], value: object) -> dict[str, Any]:
    if labels != VERDICT_LABELS:
        _refuse("labels", list(labels), f"{list(VERDICT_LABELS)} for the task '{DEEPFAKE}'")
    if not isinstance(value, dict) or set(value) != {"crop", "decision"}:
        _refuse("rules", value, "an object with the keys 'crop' and 'decision'")
    try:
        crop, decision = CropSpec.from_dict(value["crop"]), Decision.from_dict(value["decision"])
    except (ValueError, OverflowError) as error:
        raise ContractError(f"The contract's 'rules' do not hold: {error}") from error
    return {"crop": crop.to_dict(), "decision": decision.to_dict()}


def _heads(task: str, labels: tuple[str, ...], value: object) -> dict[str, HeadContract] | None:
    if task != SEVERAL:
        if value is not None:
            _refuse("heads", value, f"null for the task '{task}'")
        return None
    if not isinstance(value, dict) or set(value) != set(labels):
        _refuse("heads", value, f"an object with the keys {', '.join(labels)}")
    # In the order of the labels, whatever the order of the file: it is that of the outputs.
    heads = {name: _head(name, value[name]) for name in labels}
    for name, head in heads.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            _refuse("heads", name, "names of letters, digits and underscores")
        if head.task == DEEPFAKE:
            _refuse("heads", name, "heads that take whole images, not crops of faces")
    return heads


def _head(name: str, value: object) -> HeadContract:
    if isinstance(value, HeadContract):
        return value
    known = {"task", "labels", "rules"}
    if not isinstance(value, dict) or not {"task", "labels"} <= set(value) <= known:
        _refuse(f"heads.{name}", value, "an object with 'task', 'labels' and maybe 'rules'")
    return HeadContract(**value)
