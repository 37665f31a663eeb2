"""`card.md`: what a bundle is, where it comes from and how well it does, from the results at hand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vfm_runtime.bundle.contract import Contract, HeadContract

from vfm.bundle.calibration import Calibration
from vfm.bundle.parity import Parity
from vfm.models.licenses import terms

Source = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Content of the `results.json` beside a checkpoint, by split; and the checkpoint's own entry: data, seed, versions."""

_METRICS = (
    *("accuracy", "mAP", "macro_f1", "top5_accuracy", "auroc", "AP", "AP50"),
    *("video_auc", "macro_auc", "frame_auc"),
)
_OF_VIDEOS = ("video_auc", "macro_auc")


def card(
    contract: Contract,
    parity: Parity,
    sources: Mapping[str, Source],
    calibrations: Mapping[str, Calibration] = MappingProxyType({}),
    precisions: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """Write the card as Markdown.

    Args:
        contract: Of the bundle.
        parity: Of the bundle.
        sources: Where each head comes from, by its name; that of a single one is empty.
        calibrations: What was fitted of the heads that are calibrated.
        precisions: What was measured of each graph of fewer bits.
        sizes: Bytes of the graph by precision.
    """
    origin = next(iter(sources.values()))[1]
    title = f"{len(contract.labels)} {'labels' if contract.heads is None else 'heads'}"
    lines = [
        f"# {contract.backbone}, {title}",
        "",
        f"- Licence of the pretrained weights: {_licence(contract, origin)}",
        f"- Input: any image; brought to {contract.size[0]} x {contract.size[1]} pixels "
        f"({contract.preprocess['fit']}, {contract.preprocess['interpolation']})",
    ]
    for name, head in contract.each.items():
        lines += _head(name, head, *sources[name], calibrations.get(name))
    return "\n".join([*lines, *_agreement(parity), *_formats(parity, precisions, sizes)]) + "\n"


def _head(
    name: str,
    head: HeadContract,
    results: Mapping[str, Any],
    origin: Mapping[str, Any],
    calibration: Calibration | None,
) -> list[str]:
    data = origin.get("data") or {}
    more = " ..." if len(head.labels) > 20 else ""
    return [
        *(["", f"## Head `{name}`", ""] if name else []),
        f"- Task: {head.task}",
        f"- Labels: {', '.join(head.labels[:20])}{more}",
        f"- Trained with: {', '.join(f'{k} {v}' for k, v in origin['versions'].items())}; seed {origin['seed']}",
        f"- Data fingerprint: {data.get('fingerprint', 'none')}",
        "",
        *_judging(head),
        *_sureness(head, calibration),
        "## Results",
        "",
        *(_results(results) or ["None were found beside the checkpoint; `vfm test` writes them."]),
        *_warnings(results),
        "",
    ]


def _agreement(parity: Parity) -> list[str]:
    return [
        "## Agreement of the bundle with the trained model",
        "",
        f"{parity}; tolerance {parity.tolerance:.0e}. One image from file to answer on the CPU: "
        f"{parity.onnx_ms:.1f} ms, by torch {parity.torch_ms:.1f} ms.",
    ]


def _formats(
    parity: Parity, precisions: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]
) -> list[str]:
    """The graph of each precision beside the others."""
    if not precisions:
        return []
    first = next(iter(precisions.values()))
    rows = [
        f"| {name} | {sizes[name] / 1e6:.1f} | {row['onnx_ms']:.1f} | {row['after']:.4f} | {row['drop']:.2f} | "
        f"{row['max_difference']:.1e} | {row['num_changed']} |"
        for name, row in precisions.items()
    ]
    return [
        "",
        "## Formats",
        "",
        f"{first['metric']} on {first['num_images']} validation images; time of one image from file to answer on the "
        "CPU of the export, where fp16 is slow; differences from the trained model on "
        f"{len(parity.images)} images. In int8 the answer for an image depends a little on the others of its batch.",
        "",
        f"| format | MB | ms | {first['metric']} | points lost | largest difference | other answers |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| fp32 | {sizes['fp32'] / 1e6:.1f} | {parity.onnx_ms:.1f} | {first['before']:.4f} | 0 | "
        f"{parity.max_difference:.1e} | {parity.num_changed} |",
        *rows,
    ]


def _sureness(head: HeadContract, calibration: Calibration | None) -> list[str]:
    """When the answers of a model that labels images or finds objects are sure."""
    if head.task == "deepfake" or head.rules is None:
        return []
    rules = head.confidence
    lines = []
    if calibration is not None:
        lines.append(
            f"- Temperature {rules.temperature:.4g}, fitted on {calibration.num_images} validation images"
        )
        if calibration.error_before is not None and calibration.error_after is not None:
            lines[-1] += (
                f": expected calibration error {calibration.error_before:.4f} before, "
                f"{calibration.error_after:.4f} after"
            )
    if rules.thresholds is not None:
        least, most = min(rules.thresholds), max(rules.thresholds)
        lines.append(f"- Thresholds by label: {least:.3f} to {most:.3f}")
    if calibration is not None and calibration.min_precision is not None:
        shared = (
            f"; {len(calibration.shared)} labels have too few answers for a threshold of their own"
            * bool(calibration.shared)
        )
        lines.append(
            f"- Sure answers: at least {100 * calibration.min_precision:g} % right, each threshold at a "
            f"confidence of 95 %{shared}"
        )
    if rules.max_distance is not None:
        lines.append(
            f"- Unsure beyond a distance of {rules.max_distance:.3f} from the training images"
        )
    return ["## When it is sure", "", *lines, ""]


def _licence(contract: Contract, origin: Mapping[str, Any]) -> str:
    if origin.get("weights") is None:
        return "none used (random start)"
    duties = terms(contract.license).duties
    return (contract.license or "not stated") + (f"; {duties}" if duties else "")


def _judging(head: HeadContract) -> list[str]:
    """How a model that tells real from fake cuts faces out and decides, and what its answers are not."""
    if head.task != "deepfake" or head.rules is None:
        return []
    crop, rules = head.rules["crop"], head.rules["decision"]
    faces = f", face: {crop['policy']}, detector: {crop['detector']}"
    threshold = "none is calibrated: 0.5 is assumed, and nothing is known of false alarms"
    if rules["threshold"] is not None:
        threshold = f"{rules['threshold']:.4f} on the mean logit over {rules['temperature']:.4f}"
        if rules["fpr"] is not None:
            threshold += (
                f", fitted on {rules['num_reals']} real videos for {rules['fpr']:.1%} false alarms"
            )
    limits = ("min_face", "min_frames", "min_sharpness", "max_distance", "max_spread", "real_below")
    stated = [f"{name} {rules[name]:g}" for name in limits if rules[name] is not None]
    return [
        "## How it judges",
        "",
        f"- Crop: {crop['source']}, {crop['size']} pixels, margin {crop['margin']:g}"
        f"{faces if crop['source'] == 'faces' else ''}",
        f"- Of a video {rules['num_frames']} frames; its score is that of their mean logit",
        f"- Threshold: {threshold}",
        f"- Undecided outside of: {', '.join(stated)}",
        "- A score is no proof. The model knows the kinds of forgery that it was trained on: one for faces says "
        "nothing of images or videos that are generated whole, nor the other way round.",
        "",
    ]


def _warnings(results: Mapping[str, Any]) -> list[str]:
    """What the results say of their own trustworthiness."""
    rows = [
        f"- {split}: {warning}"
        for split, values in results.items()
        for warning in values.get("warnings", [])
    ]
    return ["", *rows] if rows else []


def _results(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for split, values in results.items():
        for name in _METRICS:
            v = values.get(name)
            number = values["num_videos" if name in _OF_VIDEOS else "num_samples"] if v else 0
            if isinstance(v, float):
                rows.append(f"| {split} | {name} | {v:.4f} | | {number} |")
            elif v is not None and v["low"] is not None:
                rows.append(
                    f"| {split} | {name} | {v['value']:.4f} | {v['low']:.4f} to {v['high']:.4f} "
                    f"| {number} |"
                )
    if not rows:
        return []
    return [
        "| split | metric | value | 95 % interval | images or videos |",
        "| --- | --- | ---: | --- | ---: |",
        *rows,
    ]
