"""`card.md`: what a bundle is, where it comes from and how well it does, from the results at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfm_runtime.contract import Contract

from vfm.bundle.parity import Parity
from vfm.models.licenses import terms

_METRICS = (
    *("accuracy", "mAP", "macro_f1", "top5_accuracy", "auroc", "AP", "AP50"),
    *("video_auc", "macro_auc", "frame_auc"),
)
_OF_VIDEOS = ("video_auc", "macro_auc")


def card(
    contract: Contract,
    parity: Parity,
    results: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> str:
    """Write the card as Markdown.

    Args:
        contract: Of the bundle.
        parity: Of the bundle.
        results: Content of the `results.json` beside the checkpoint, by split; may be empty.
        origin: The checkpoint's own entry: data, seed, versions.
    """
    data = origin.get("data") or {}
    lines = [
        f"# {contract.backbone}, {len(contract.labels)} labels",
        "",
        f"- Task: {contract.task}",
        f"- Labels: {', '.join(contract.labels[:20])}{' ...' if len(contract.labels) > 20 else ''}",
        f"- Licence of the pretrained weights: {_licence(contract, origin)}",
        f"- Input: any image; brought to {contract.size[0]} x {contract.size[1]} pixels "
        f"({contract.preprocess['fit']}, {contract.preprocess['interpolation']})",
        f"- Trained with: {', '.join(f'{k} {v}' for k, v in origin['versions'].items())}; seed {origin['seed']}",
        f"- Data fingerprint: {data.get('fingerprint', 'none')}",
        "",
        *_judging(contract),
        "## Results",
        "",
        *(_results(results) or ["None were found beside the checkpoint; `vfm test` writes them."]),
        *_warnings(results),
        "",
        "## Agreement of the bundle with the trained model",
        "",
        f"{parity}; tolerance {parity.tolerance:.0e}. One image from file to answer on the CPU: "
        f"{parity.onnx_ms:.1f} ms, by torch {parity.torch_ms:.1f} ms.",
    ]
    return "\n".join(lines) + "\n"


def _licence(contract: Contract, origin: Mapping[str, Any]) -> str:
    if origin.get("weights") is None:
        return "none used (random start)"
    duties = terms(contract.license).duties
    return (contract.license or "not stated") + (f"; {duties}" if duties else "")


def _judging(contract: Contract) -> list[str]:
    """How a model that tells real from fake cuts faces out and decides, and what its answers are not."""
    if contract.rules is None:
        return []
    crop, rules = contract.rules["crop"], contract.rules["decision"]
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
