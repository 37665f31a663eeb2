"""Start a head from one that has learned before: what knows no class by name and shape, class rows by label."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vfm_runtime.errors import MismatchError

from vfm.models.heads.dense import DenseHead
from vfm.models.tensors import UnreadableFileError, find_tensors, read_plain
from vfm.models.weights import WeightsError

OBJECTS = Path(__file__).with_name("objects.safetensors")
"""A DenseHead without classes that learned what an object is from generated scenes; `objects.json` is its card."""

_PREFIX = "head."


def choose_start(head: DenseHead, backbone: str, *, is_pretrained: bool) -> tuple[Path | None, str]:
    """Return the file that a head starts from, None for a random start, and why in words, if there is more to say.

    Args:
        head: Head whose `weights` say what is asked for.
        backbone: Name of its backbone.
        is_pretrained: Whether that has learned before, too.
    """
    if head.weights in (None, "none"):
        return None, ""
    if head.weights == "objects":
        return OBJECTS, ""
    if head.weights != "auto":
        return Path(head.weights), ""
    card = json.loads(OBJECTS.with_suffix(".json").read_text(encoding="utf-8"))
    is_measured = backbone.partition(".")[0] in card["backbones"] and is_pretrained
    if is_measured and (head.width, head.depth) == (card["width"], card["depth"]):
        return OBJECTS, ""
    return None, (
        "The head starts at random: that one which has seen objects is the default for "
        f"{', '.join(card['backbones'])} with their weights, a width of {card['width']} and a depth of "
        f"{card['depth']} alone, with which it was measured to help (--model.head.weights objects)."
    )


@torch.no_grad()
def load_head_weights(head: DenseHead, path: Path) -> str:
    """Set what fits of a head from a checkpoint or a file of its tensors, and return in words what did.

    Rows of the class layer whose labels the file lacks keep their start.

    Args:
        head: Head with layers; its `labels` name the rows of its class layer.
        path: A checkpoint of vfm, or a `.safetensors` file of a head's tensors.

    Raises:
        WeightsError: The file cannot be read, or holds no such head.
        MismatchError: The head has another width or depth.
    """
    tensors, labels = _read(path)
    current = head.state_dict()
    rows = {"classes.weight", "classes.bias"}
    shared = {name: tensors[name] for name in current if name in tensors and name not in rows}
    if not shared:
        raise WeightsError(
            f"{path} holds no {type(head).__name__}: none of its {len(tensors)} tensors has a name of one. Give a "
            "checkpoint with such a head (--model.head.weights)."
        )
    # What enters from the backbone has the backbone's widths; all else has the head's.
    entering = [name for name, value in shared.items() if value.shape != current[name].shape]
    inner = [name for name in entering if ".enter." not in f".{name}"]
    if inner:
        name = inner[0]
        raise MismatchError(
            f"{path} does not fit: {name} is {list(shared[name].shape)}, and {list(current[name].shape)} in this head. "
            "Give the head the width and depth that it had (--model.head.width, --model.head.depth), or leave "
            "--model.head.weights out."
        )
    fitting = {name: value for name, value in shared.items() if name not in entering}
    head.loaded_labels = tuple(label for label in head.labels if label in labels)
    for name in rows & tensors.keys():
        row = current[name].clone()
        for label in head.loaded_labels:
            row[head.labels.index(label)] = tensors[name][labels.index(label)]
        fitting[name] = row
    head.load_state_dict({**current, **fitting})
    left = f"; {len(entering)} that meet another backbone start anew" if entering else ""
    return (
        f"Head from {path}: {len(fitting)} of {len(current)} tensors{left}; classes it knows: "
        f"{', '.join(head.loaded_labels) or 'none'}."
    )


def _read(path: Path) -> tuple[dict[str, Tensor], Sequence[str]]:
    """Return the tensors of a head, in float32, and its labels."""
    if not path.is_file():
        raise WeightsError(
            f"There is no file {path} of a head's weights. Give a checkpoint (--model.head.weights)."
        )
    try:
        content: Any = read_plain(path)
    except UnreadableFileError as error:
        raise WeightsError(
            f"{path} cannot be read as the weights of a head: {error} Give a checkpoint of vfm."
        ) from error
    entry = content.get("vfm") if isinstance(content, Mapping) else None
    labels = entry["labels"] if isinstance(entry, Mapping) else []
    tensors = {
        name.removeprefix(_PREFIX): value.float() if value.is_floating_point() else value
        for name, value in find_tensors(content).items()
        if entry is None or name.startswith(_PREFIX)
    }
    return tensors, labels
