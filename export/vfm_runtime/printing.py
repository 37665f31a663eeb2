"""What the command says: answers, boxes, verdicts, and what a bundle is."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vfm_runtime.bundle.model import Model
from vfm_runtime.bundle.predictor import Answer, HeadAnswer
from vfm_runtime.deepfake.pipeline import Judge
from vfm_runtime.deepfake.verdict import Verdict, sigmoid
from vfm_runtime.media.image import ImageError, Pixels
from vfm_runtime.tasks.confidence import Rules
from vfm_runtime.tasks.detection import Detections

_MAX_ERROR_LINES = 8


def complain(error: Exception) -> None:
    """Print an error to stderr, its first lines.

    Args:
        error: Its text says cause and remedy.
    """
    lines = str(error).splitlines()[:_MAX_ERROR_LINES]
    print("error: " + "\n".join(lines), file=sys.stderr)


def show(path: Path, answer: Answer | ImageError, options: argparse.Namespace) -> None:
    """Print the answer to one file, and draw it where that was asked for.

    Args:
        path: The file.
        answer: To it.
        options: Of `predict`: json, top, threshold, draw.
    """
    if isinstance(answer, ImageError):
        complain(answer)
        if options.json:
            print(json.dumps({"image": str(path), "error": str(answer)}))
    elif isinstance(answer, dict):
        _show_heads(path, answer, options)
    elif isinstance(answer, Detections):
        _show_boxes(path, answer, options)
    elif isinstance(answer, Verdict):
        _show_verdict(path, answer, options)
    elif options.json:
        print(json.dumps({"image": str(path), **_plain(answer, options)}))
    else:
        print(f"{path}: {_line(answer, options)}")


def _show_heads(path: Path, answers: dict[str, HeadAnswer], options: argparse.Namespace) -> None:
    if options.json:
        heads = {name: _plain(answer, options) for name, answer in answers.items()}
        print(json.dumps({"image": str(path), "heads": heads}))
        return
    for name, answer in answers.items():
        print(f"{path}: {name}: {_line(answer, options)}")


def _plain(answer: HeadAnswer, options: argparse.Namespace) -> dict[str, Any]:
    if isinstance(answer, Detections):
        return answer.to_dict(options.threshold)
    if isinstance(answer, Verdict):
        return answer.to_dict()
    return answer.to_dict(options.top, options.threshold)


def _line(answer: HeadAnswer, options: argparse.Namespace) -> str:
    """The answer in a line; of a verdict its headline."""
    if isinstance(answer, Verdict):
        return answer.headline
    if isinstance(answer, Detections):
        shown = answer.above(options.threshold)
        rows = zip(shown.labels, shown.scores, shown.boxes.tolist(), strict=True)
        listed = [f"{n} {s:.4f} [{', '.join(f'{v:.1f}' for v in box)}]" for n, s, box in rows]
        best = "; ".join(listed) or f"none (best score {answer.scores.max(initial=0):.4f})"
    else:
        many = answer.multilabel
        pairs = answer.applying(options.threshold) if many else answer.top(options.top)
        best = ", ".join(f"{label} {score:.4f}" for label, score in pairs)
        best = best or f"none (nearest: {answer.label} {answer.score:.4f})"
    return best if answer.reason is None else f"{best} (unsure: {answer.reason})"


def _show_boxes(path: Path, answer: Detections, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"image": str(path), **answer.to_dict(options.threshold)}))
    else:
        print(f"{path}: {_line(answer, options)}")
    if options.draw is not None:
        _save(path, answer.draw(path, options.threshold), options)


def _show_verdict(path: Path, answer: Verdict, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"image": str(path), **answer.to_dict()}))
    else:
        print(f"{path}: {answer.headline}. {' '.join([answer.explanation, *answer.notes])}")
    if options.draw is not None:
        _save(path, answer.draw(path), options)


def _save(path: Path, drawn: Pixels, options: argparse.Namespace) -> None:
    """Write the picture under its own path below the folder, `cat.jpg` as `cat.jpg.png`, so that names do not meet."""
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    target = Path(options.draw, *parts)
    target = target.with_name(f"{target.name}.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn).save(target)


def info_lines(model: Model, files: dict[str, int]) -> Iterator[str]:
    """What a bundle is, line by line.

    Args:
        model: It, loaded.
        files: Bytes by name.
    """
    contract = model.contract
    shown = ", ".join(contract.labels[:5]) + (", ..." if len(contract.labels) > 5 else "")
    yield f"task       {contract.task}"
    yield f"labels     {len(contract.labels)}: {shown}"
    yield f"backbone   {contract.backbone}"
    yield f"size       {contract.size[0]} x {contract.size[1]} (height x width)"
    yield f"license    {contract.license or 'not stated'}"
    yield f"versions   {', '.join(f'{k} {v}' for k, v in sorted(contract.versions.items()))}"
    for name, head in contract.each.items():
        if name:
            yield f"head       {name}: {head.task}, {len(head.labels)} labels"
        if model.judge is None and head.rules is not None:
            yield f"sure       {_sureness(head.surely)}"
    if model.judge is not None:
        yield from _rule_lines(model.judge)
    yield f"device     {model.device}"
    yield f"precision  {model.precision} (the bundle has {', '.join(model.precisions)})"
    for name, size in files.items():
        yield f"{size:>12,} B  {name}"


def _sureness(rules: Rules) -> str:
    parts = [f"temperature {rules.temperature:.4g}"]
    if rules.thresholds is not None:
        parts.append(f"scores from {min(rules.thresholds):.3f} to {max(rules.thresholds):.3f} up")
    if rules.max_distance is not None:
        parts.append(f"distance up to {rules.max_distance:.3f}")
    return ", ".join(parts)


def _rule_lines(judge: Judge) -> Iterator[str]:
    crop, rules = judge.crop, judge.decision
    faces = f", {crop.policy} face, {crop.detector}" if crop.source == "faces" else ""
    yield f"crop       {crop.source}, {crop.size} pixels, margin {crop.margin:g}{faces}"
    yield f"frames     {rules.num_frames} of a video"
    if rules.threshold is None:
        yield "threshold  0.5 assumed: not calibrated"
        return
    basis = ""
    if rules.fpr is not None and rules.num_reals is not None:
        basis = f", for {rules.fpr:.1%} false alarms, fitted on {rules.num_reals} real ones"
    yield f"threshold  {sigmoid(rules.threshold):.4f}{basis}"
