"""Contract of a bundle: the schema of `vfm.json` that the training side writes and the runtime reads."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NoReturn, Self

from vfm_runtime.bundle.extensions import EXTENSIONS, check_extensions
from vfm_runtime.errors import ContractError, DataError
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.tasks.base import REFERENCE_PORTS, TaskType
from vfm_runtime.tasks.embedding import EmbeddingSpec
from vfm_runtime.tasks.groups import GroupRules
from vfm_runtime.tasks.multi_head import MultiHeadType
from vfm_runtime.tasks.registry import MULTI_HEAD, find_task_type, list_tasks
from vfm_runtime.tasks.tiling import Tiling
from vfm_runtime.text import TextSpec
from vfm_runtime.validation import is_deep, is_whole

METADATA_KEY = "vfm"
"""Key of the contract's JSON in the `metadata_props` of each ONNX file."""

FORMAT = 2
"""The newest bundle format that this version reads; it reads format 1 too.

Format 2 names tasks by what is registered, calls several heads `multi_head` (format 1: `several`), may name the
`package` that brings a task, and may hold `extensions.EXTENSIONS`.
"""

_SEVERAL = "several"

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

_OPTIONAL = ("rules", "heads", "package", "extensions")
_HEAD_NAME = r"[A-Za-z0-9_]+"
_REMEDY = "Export the bundle anew with this version of vfm."


@dataclass(frozen=True, kw_only=True)
class HeadContract:
    """Task, labels and rules of one head; checked when made."""

    task: str
    """Name of the task; of a whole contract `multi_head` where there are several heads."""
    labels: tuple[str, ...]
    """Class names, in the order of the columns of `scores`; of a detector, by its `labels`; the
    names of several heads."""
    rules: dict[str, Any] | None = None
    """How the task is asked and answers, such as the values of `ConfidenceRules`; None where there are none, and then
    the contract does not name them."""
    package: str | None = None
    """Distribution that brings the task; None where vfm-runtime does."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _check_labels(self.labels))
        if self.task == MULTI_HEAD:
            raise ContractError.of("task", self.task, f"one of {', '.join(list_tasks())}")
        self._take_from_type()

    @cached_property
    def type(self) -> TaskType:
        """The task, with these labels and rules."""
        try:
            return find_task_type(self.task, self.package)(self.labels, self.rules)
        except ContractError:
            raise
        except (ValueError, OverflowError) as error:
            raise ContractError(f"The contract's 'rules' do not hold: {error} {_REMEDY}") from error

    def _take_from_type(self) -> None:
        """Let the task say its rules in their one form, and which distribution brings it."""
        object.__setattr__(self, "rules", self.type.rules_to_dict())
        package = self.type.package
        object.__setattr__(self, "package", None if package == TaskType.package else package)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        values = {"task": self.task, "labels": list(self.labels)}
        for name in ("rules", "package"):
            if (value := getattr(self, name)) is not None:
                values[name] = _to_plain(name, value)
        return values


@dataclass(frozen=True, kw_only=True)
class Contract(HeadContract):
    """What a model takes, what it answers, and where it comes from; checked when made."""

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
    heads: dict[str, HeadContract] | None = None
    """Each of several heads by its name; None of one head, whose contract then does not name it."""
    extensions: dict[str, Any] = field(default_factory=dict)
    """Values of `EXTENSIONS`, by name; each is a key of its own in the file."""

    def __post_init__(self) -> None:
        # Trainers pass lists and tuples; files can only hold lists. One form makes `==` meaningful.
        object.__setattr__(self, "labels", _check_labels(self.labels))
        _check_format(self.format)
        if self.task == _SEVERAL:
            object.__setattr__(self, "task", MULTI_HEAD)
        if not isinstance(self.backbone, str) or not self.backbone:
            raise ContractError.of("backbone", self.backbone, "a name")
        if self.license is not None and not isinstance(self.license, str):
            raise ContractError.of("license", self.license, "a string or null")
        object.__setattr__(self, "preprocess", _check_preprocess(self.preprocess))
        if not isinstance(self.versions, dict):
            raise ContractError.of("versions", self.versions, "an object of package to version")
        for name, version in self.versions.items():
            if not isinstance(name, str) or not isinstance(version, str):
                raise ContractError.of("versions", {name: version}, "strings only")
        check_extensions(self.extensions, self.format)
        object.__setattr__(self, "heads", _read_heads(self))
        if self.heads is None:
            self._take_from_type()
        elif self.rules is not None:
            raise ContractError.of("rules", self.rules, "null: each of several heads has its own")
        uses = {"tiles": self.type.takes_tiles, "box_embedding": self.type.learns_boxes}
        unused = [name for name, is_used in uses.items() if name in self.extensions and not is_used]
        for name in unused:
            raise ContractError.of(name, self.extensions[name], f"none for '{self.task}'")

    @cached_property
    def type(self) -> TaskType:
        """The task, with these labels and rules, and the tiles of its images; of several heads, all of them."""
        if self.heads is not None:
            return MultiHeadType({name: head.type for name, head in self.heads.items()})
        task_type = super().type
        task_type.tiling = self.tiling
        if self.group_rules is not None:
            task_type.set_group_rules(self.group_rules)
        return task_type

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
        return {"": self}

    def ports(self) -> tuple[dict[str, str], dict[str, str]]:
        """Names and element types of what `model.onnx` takes and of what it gives.

        Outputs of several heads are named `head.output`.
        """
        outputs = dict(self.type.outputs)
        if self.reference:
            outputs |= REFERENCE_PORTS
        if self.embedding is not None:
            outputs[self.embedding.output] = "float"
        if self.box_embedding is not None:
            outputs[self.box_embedding.output] = "float"
        return dict(self.type.inputs), outputs

    @property
    def reference(self) -> bool:
        """Whether the graph also says where an image lies among those of the training."""
        return self.type.has_reference

    @property
    def value_range(self) -> ValueRange | None:
        """Black and white of values of more than 8 bits; None where the training did not say them."""
        values = self.extensions.get("value_range")
        return None if values is None else (values["low"], values["high"])

    @property
    def embedding(self) -> EmbeddingSpec | None:
        """What the embedding is made of that the graph gives beside its answers; None where it gives none."""
        values = self.extensions.get("embedding")
        return None if values is None else EmbeddingSpec.from_dict(values)

    @property
    def box_embedding(self) -> EmbeddingSpec | None:
        """What the embeddings of a detector's boxes are made of; None where its graph gives none."""
        values = self.extensions.get("box_embedding")
        return None if values is None else EmbeddingSpec.from_dict(values)

    @property
    def text(self) -> TextSpec | None:
        """How words become vectors that are compared with embeddings; None where the bundle has no text tower."""
        values = self.extensions.get("tokenizer")
        return None if values is None else TextSpec.from_dict(values)

    @property
    def group_rules(self) -> GroupRules | None:
        """Rules by group of images; None where all have the same."""
        values = self.extensions.get("group_thresholds")
        return None if values is None else GroupRules.from_dict(values)

    @property
    def tiling(self) -> Tiling | None:
        """How large images are cut into tiles; None where they stay whole."""
        values = self.extensions.get("tiles")
        return None if values is None else Tiling.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as plain values that JSON can hold."""
        values = super().to_dict() | {
            "preprocess": _to_plain("preprocess", self.preprocess),
            "backbone": self.backbone,
            "license": self.license,
            "versions": dict(self.versions),
            "format": self.format,
            **_to_plain("extensions", self.extensions),
        }
        if self.format < 2 and self.heads is not None:
            values["task"] = _SEVERAL
        if self.heads is not None:
            values["heads"] = {name: head.to_dict() for name, head in self.heads.items()}
        return values

    def to_json(self) -> str:
        """Return one JSON text for one contract: sorted keys, no spaces, ASCII only."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a contract from what `to_dict` returned, and check every value.

        Raises:
            ContractError: A key is missing, unknown or holds a value it cannot hold.
        """
        if not isinstance(values, Mapping):
            raise ContractError.of("contract", values, "a JSON object")
        names = [field.name for field in fields(cls) if field.name != "extensions"]
        # A newer format may have other keys, so its number is looked at before the keys are.
        for name in ["format", *names]:
            if name not in values and name not in _OPTIONAL:
                raise ContractError(f"The contract has no key '{name}'. {_REMEDY}")
            if name == "format":
                _check_format(values["format"])
        extensions = {name: value for name, value in values.items() if name in EXTENSIONS}
        values = {name: value for name, value in values.items() if name not in EXTENSIONS}
        for name in values:
            # Refused, not ignored: a damaged key name must not pass as an extra.
            if name not in names:
                listed = ", ".join(names)
                raise ContractError(
                    f"The contract has an unknown key {name!r}. Known: {listed}. {_REMEDY}"
                )
        try:
            return cls(**values, extensions=extensions)
        except RecursionError as error:
            raise ContractError(f"The contract is nested too deeply. {_REMEDY}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build a contract from what `to_json` returned, as the metadata of ONNX files have it.

        Raises:
            ContractError: The text is not JSON, or not a contract.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ContractError(f"The contract is not valid JSON: {error}. {_REMEDY}") from error
        return cls.from_dict(values)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text, or its UTF-8 bytes, strictly: no key twice, no NaN or Infinity.

    Python's parser keeps the last of two equal keys, which would let a damaged key name hide
    another entry.

    Raises:
        ValueError: The text is not strict JSON.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        return json.loads(text, object_pairs_hook=_make_object, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise DataError("nested too deeply") from error


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise DataError("an object holds the same key twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise DataError(f"{name} is not JSON")


def _check_format(value: Any) -> None:
    if not is_whole(value) or value < 1:
        raise ContractError.of("format", value, f"a whole number from 1 to {FORMAT}")
    if value > FORMAT:
        raise ContractError(
            f"The bundle was written by a newer vfm: its format is {value}, this version reads up "
            f"to {FORMAT}. To read it, upgrade vfm-runtime: pip install --upgrade vfm-runtime."
        )


def _check_labels(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ContractError.of("labels", value, "a list of at least one name")
    names: set[str] = set()
    for name in value:
        if not isinstance(name, str) or not name:
            raise ContractError.of("labels", name, "names that are strings and not empty")
        if name in names:
            raise ContractError.of("labels", name, "each name once")
        names.add(name)
    return tuple(value)


def _to_plain(key: str, value: object) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ContractError.of(key, value, f"plain JSON values ({error})") from error


def _check_preprocess(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ContractError.of("preprocess", value, "an object with the key 'size'")
    if is_deep(value):
        raise ContractError.of("preprocess", value, "values that are not nested so deeply")
    plain: dict[str, Any] = _to_plain("preprocess", value)
    size = plain.get("size")
    expected = "[height, width], two whole numbers above 0"
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(map(is_whole, size))
        or min(size) < 1
    ):
        raise ContractError.of("preprocess.size", size, expected)
    return plain


def _read_heads(contract: Contract) -> dict[str, HeadContract] | None:
    task, labels, value = contract.task, contract.labels, contract.heads
    if task != MULTI_HEAD:
        if value is not None:
            raise ContractError.of("heads", value, f"null for the task '{task}'")
        return None
    if not isinstance(value, dict) or set(value) != set(labels):
        raise ContractError.of("heads", value, f"an object with the keys {', '.join(labels)}")
    if (rules := contract.extensions.get("group_thresholds")) is not None:
        raise ContractError.of("group_thresholds", rules, "none for several heads")
    # In the order of the labels, whatever the order of the file: it is that of the outputs.
    heads = {name: _read_head(name, value[name]) for name in labels}
    for name, head in heads.items():
        if not re.fullmatch(_HEAD_NAME, name):
            raise ContractError.of("heads", name, "names of letters, digits and underscores")
        if head.type.uses_crops:
            raise ContractError.of(
                "heads", name, "heads that take whole images, not crops of faces"
            )
    return heads


def _read_head(name: str, value: object) -> HeadContract:
    if isinstance(value, HeadContract):
        return value
    keys = {field.name for field in fields(HeadContract)}
    if not isinstance(value, dict) or not {"task", "labels"} <= set(value) <= keys:
        raise ContractError.of(
            f"heads.{name}", value, "an object with 'task', 'labels' and maybe 'rules'"
        )
    return HeadContract(**value)
