"""Replay the golden images of a bundle with ONNX Runtime, numpy and Pillow alone.

    pip install onnxruntime numpy pillow
    python golden.py bundle/

Prints a line an image; exits with 1 where an answer is not that of the export. `Bundle.ask` is all that a client of
your own needs; the rest compares answers.
"""

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = (1, 2)  # of bundles that are understood here
UNHEEDED = ("tiles", "value_range", "group_thresholds", "tokenizer")  # would change the answers
SIDE_FILES = (
    "model.onnx.data",
)  # weights that ONNX Runtime opens by itself, where they are kept apart

MIN_SCORE = 0.05  # boxes of a lower score come and go with the last digit
MIN_IOU = 0.99  # least overlap of boxes that are the same
UNSEEN = ("no_face", "face_too_small", "too_blurred")  # decided before the model is asked

Outputs = dict[str, NDArray[Any]]


class BundleError(ValueError):
    """The folder is no bundle that is understood here, or a file is not the one of the export."""


class Bundle:
    """A bundle, its files checked.

    Args:
        folder: Where `vfm.json` lies.
    """

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "vfm.json").read_text(encoding="utf-8"))
        self.folder, self.files, self.contract = folder, manifest["files"], manifest["contract"]
        if self.contract["format"] not in FORMATS:
            raise BundleError(
                f"The format of {folder} is {self.contract['format']}; known: {FORMATS}."
            )
        if unheeded := [name for name in UNHEEDED if name in self.contract]:
            raise BundleError(f"{folder} needs {', '.join(unheeded)}, which is not heeded here.")
        for name in SIDE_FILES:
            if name in self.files:
                self.check(name)
        self.before = self._session("preprocess.onnx")
        self.model = self._session("model.onnx")

    def check(self, name: str) -> Path:
        """Return the path of a file whose bytes are those of the export.

        Args:
            name: As `vfm.json` lists it.
        """
        path = self.folder / name
        if name not in self.files:
            raise BundleError(f"vfm.json does not list {name}.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.files[name]:
            raise BundleError(f"{path} is damaged: its sha256 is not that of vfm.json.")
        return path

    def ask(self, image: NDArray[np.uint8]) -> Outputs:
        """Ask the model about one image; each output has one row.

        Args:
            image: Uint8 RGB, [height, width, 3].
        """
        inputs = _run(self.before, {"image": image})
        return _run(self.model, {port.name: inputs[port.name] for port in self.model.get_inputs()})

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        path = self.check(name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, inputs: Outputs) -> Outputs:
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def open_image(path: Path) -> NDArray[np.uint8]:
    """Open an image as uint8 RGB: upright, alpha over white, 16-bit grey brought to 8 bits.

    Args:
        path: Any file that Pillow opens.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):
            grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
            image = Image.fromarray(grey)
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


class Agreement(NamedTuple):
    """An answer beside that of the export."""

    difference: float
    """The largest difference of a score; infinite where one is no number."""
    changed: bool
    """Whether the answer itself is another."""
    found: str
    """The answer in a word or two."""
    expected: str
    """That of the export."""


def compare(head: dict[str, Any], row: dict[str, Any], outputs: Outputs) -> Agreement:
    """Compare the model's answer with that of the export; of several heads, the one that differs most counts.

    Args:
        head: The contract, or one of its `heads`.
        row: What `golden.json` says of the image.
        outputs: What the model answers, one row each.
    """
    if head.get("heads"):
        rows = {name: compare(*part) for name, part in _heads(head, row, outputs).items()}
        name, worst = max(rows.items(), key=lambda item: (item[1].changed, item[1].difference))
        return worst._replace(found=f"{name}: {worst.found}", expected=f"{name}: {worst.expected}")
    ways = {
        "classification": compare_scores,
        "multilabel": compare_scores,
        "detection": compare_boxes,
        "deepfake": compare_verdicts,
    }
    if head["task"] not in ways:
        raise BundleError(f"The task is {head['task']!r}; known: {', '.join(ways)}.")
    found = ways[head["task"]](head, row, outputs)
    # NaN compares as small; it is the largest difference there is.
    return found._replace(difference=math.inf if math.isnan(found.difference) else found.difference)


def _heads(
    contract: dict[str, Any], row: dict[str, Any], outputs: Outputs
) -> dict[str, tuple[dict[str, Any], dict[str, Any], Outputs]]:
    """Each of several heads, its row and its outputs, which are named `head.output`."""
    parts: dict[str, Outputs] = {name: {} for name in contract["heads"]}
    for port, values in outputs.items():
        name, dot, own = port.partition(".")
        if dot:
            parts[name][own] = values
    return {name: (contract["heads"][name], row["heads"][name], parts[name]) for name in parts}


def compare_scores(head: dict[str, Any], row: dict[str, Any], outputs: Outputs) -> Agreement:
    """Of a model that labels images: every score, and the best label."""
    scores = outputs["scores"][0]
    found = head["labels"][int(scores.argmax())]
    difference = np.abs(scores - np.array(row["scores"], np.float32)).max()
    return Agreement(float(difference), found != row["label"], found, row["label"])


def compare_boxes(head: dict[str, Any], row: dict[str, Any], outputs: Outputs) -> Agreement:
    """Of a detector: each box of either answer is looked for in the other."""
    kinds = {"boxes": np.float64, "labels": np.int64, "scores": np.float64}
    old = {name: np.array(row[name], kind) for name, kind in kinds.items()}
    new = {name: outputs[name][0].astype(kind) for name, kind in kinds.items()}
    apart = np.concatenate([_apart(old, new), _apart(new, old)])
    lost = int(np.isinf(apart).sum())
    seen = [f"{int((part['scores'] >= MIN_SCORE).sum())} boxes" for part in (new, old)]
    if lost:
        seen[0] += f", {lost} of either without a partner"
    return Agreement(apart[~np.isinf(apart)].max(initial=0), lost > 0, *seen)


def _apart(first: Outputs, second: Outputs) -> NDArray[np.float64]:
    """How far the score of each box is from that of its partner; infinite without one."""
    kept = first["scores"] >= MIN_SCORE
    a, b = first["boxes"].reshape(-1, 4)[kept][:, None], second["boxes"].reshape(-1, 4)[None]
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0)
    areas = [(x[..., 2:] - x[..., :2]).clip(min=0).prod(-1) for x in (a, b)]
    shared = sides.prod(-1)
    overlap = shared / (areas[0] + areas[1] - shared).clip(min=1e-9)
    # Two boxes without area at one place are the same.
    near = (overlap >= MIN_IOU) | (np.abs(a - b).max(-1) < 1e-3)
    same = near & (first["labels"][kept][:, None] == second["labels"][None])
    difference = np.abs(first["scores"][kept][:, None] - second["scores"][None])
    # Of several boxes at one place, the one whose score is nearest.
    partner: NDArray[np.float64] = np.where(same, difference, np.inf).min(axis=1, initial=np.inf)
    return partner


def compare_verdicts(head: dict[str, Any], row: dict[str, Any], outputs: Outputs) -> Agreement:
    """Of a deepfake model, whose golden images are crops: probability, heatmap and decision."""
    rules = head["rules"]["decision"]
    logit, old = float(outputs["logits"][0]), float(row["logits"])
    score = _sigmoid(logit / rules["temperature"])
    heat = np.abs(outputs["heatmaps"][0] - np.array(row["heatmaps"], np.float32))
    differences = [abs(score - _sigmoid(old / rules["temperature"])), float(heat.max())]
    expected = _named(row["label"], row["reason"])
    if row["reason"] in UNSEEN:
        return Agreement(float(np.max(differences)), False, expected, expected)
    differences.append(abs(score - row["score"]))
    found = _named(*decide(logit, float(outputs["distances"][0]), rules))
    return Agreement(float(np.max(differences)), found != expected, found, expected)


def decide(logit: float, distance: float, rules: dict[str, Any]) -> tuple[str, str | None]:
    """The label of one crop that can be judged, and why it is undecided.

    Args:
        logit: Of being fake, as the model gives it.
        distance: From the training data.
        rules: `rules.decision` of the contract.
    """
    value, limit = logit / rules["temperature"], rules["threshold"] or 0.0
    if rules["max_distance"] is not None and distance > rules["max_distance"]:
        return "undecided", "unlike_training"
    if value > limit:
        return "fake", None
    if rules["real_below"] is None or value < rules["real_below"]:
        return "real", None
    return "undecided", "near_threshold"


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else 1 - _sigmoid(-value)


def _named(label: str, reason: str | None) -> str:
    return label if reason is None else f"{label} ({reason})"


def replay(bundle: Bundle) -> bool:
    """Ask about every golden image, print a line for each, and return whether all answers are those of the export.

    Args:
        bundle: The bundle.
    """
    golden = json.loads(bundle.check("golden/golden.json").read_text(encoding="utf-8"))
    tolerance, passed = golden["tolerance"], True
    for row in golden["images"]:
        name = f"golden/{row['file']}"
        outputs = bundle.ask(open_image(bundle.check(name)))
        difference, changed, found, expected = compare(bundle.contract, row, outputs)
        same = difference <= tolerance and not changed
        passed = passed and same
        answer = f"{found}, not {expected}" if changed else found
        print(
            f"{name}: {'OK' if same else 'DIFFERS'} "
            f"({answer}; largest difference {difference:.2g}, allowed {tolerance:.2g})"
        )
    return passed and bool(golden["images"])


def main() -> int:
    """Replay one bundle; 1 where an answer is another or the bundle is damaged."""
    parser = argparse.ArgumentParser(description="Replay the golden images of a bundle.")
    parser.add_argument("bundle", type=Path, help="the folder that vfm export wrote")
    try:
        return 0 if replay(Bundle(parser.parse_args().bundle)) else 1
    except KeyError as error:
        print(f"error: the bundle has no key {error}.", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
