"""Model card (`card.md`): what a bundle is, where it comes from and how well it does, from the results at hand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vfm_runtime.bundle.contract import Contract, HeadContract

from vfm.bundle.parity import Parity
from vfm.models.licenses import find_terms
from vfm.tasks.calibration import Calibration
from vfm.tasks.checkpoint import Checkpoint
from vfm.training.budget import read_costs


def format_card(
    contract: Contract,
    parity: Parity,
    checkpoints: Mapping[str, Checkpoint],
    calibrations: Mapping[str, Calibration] = MappingProxyType({}),
    precisions: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    num_bytes: int = 0,
) -> str:
    """Return the card as Markdown.

    Args:
        contract: Contract of the bundle that is described.
        parity: Comparison of the bundle with the trained model.
        checkpoints: Where each head comes from, by its name; that of a single one is empty.
        calibrations: Calibrations by the names of the heads that have one.
        precisions: What was measured of each graph of fewer bits.
        num_bytes: Size of the graph of float32 with its weights.
    """
    origin = next(iter(checkpoints.values())).entry
    title = f"{len(contract.labels)} {'labels' if contract.heads is None else 'heads'}"
    license_name = "none used (random start)"
    if origin.get("weights") is not None:
        duties = find_terms(contract.license).duties
        license_name = (contract.license or "not stated") + (f"; {duties}" if duties else "")
    lines = [
        f"# {contract.backbone}, {title}",
        "",
        f"- Licence of the pretrained weights: {license_name}",
        f"- Input: any image; brought to {contract.size[0]} x {contract.size[1]} pixels "
        f"({contract.preprocess['fit']}, {contract.preprocess['interpolation']})",
    ]
    for name, head in contract.each.items():
        lines += _format_head(name, head, checkpoints[name], calibrations.get(name))
    lines += [
        "## Agreement of the bundle with the trained model",
        "",
        f"{parity}; tolerance {parity.tolerance:.0e}. One image from file to answer on the CPU: "
        f"{parity.onnx_ms:.1f} ms, by torch {parity.torch_ms:.1f} ms.",
        *_format_precisions(parity, precisions, num_bytes),
    ]
    return "\n".join(lines) + "\n"


def _format_head(
    name: str,
    head: HeadContract,
    checkpoint: Checkpoint,
    calibration: Calibration | None,
) -> list[str]:
    task, origin, results = checkpoint.task, checkpoint.entry, checkpoint.results
    data = origin.get("data") or {}
    more = " ..." if len(head.labels) > 20 else ""
    warnings = [
        f"- {split}: {warning}"
        for split, values in results.items()
        for warning in values.get("warnings", [])
    ]
    return [
        *(["", f"## Head `{name}`", ""] if name else []),
        f"- Task: {head.task}",
        f"- Labels: {', '.join(head.labels[:20])}{more}",
        f"- Trained with: {', '.join(f'{k} {v}' for k, v in origin['versions'].items())}; seed {origin['seed']}",
        *_format_identity(checkpoint),
        f"- Data fingerprint: {data.get('fingerprint', 'none')}",
        "",
        *task.describe_rules(head.rules, calibration),
        "## Results",
        "",
        *(
            _format_results(results, task.card_metrics)
            or ["None were found beside the checkpoint; `vfm test` writes them."]
        ),
        *(["", *warnings] if warnings else []),
        "",
        *_format_costs(None if checkpoint.path is None else read_costs(checkpoint.path.parent)),
    ]


def _format_costs(costs: Mapping[str, Any] | None) -> list[str]:
    """What the training was quoted to take beside what it took, of the run's own meter."""
    if costs is None:
        return []
    quote, meter = costs["quote"] or {}, costs["meter"]
    rows = []
    for name, unit in (("hours", "hours"), ("usd", "$"), ("kwh", "kWh")):
        span, value = quote.get(name), meter[name]
        quoted = "-"
        if span is not None:
            quoted = f"{span['value']:.3g} ({span['low']:.3g} to {span['high']:.3g})"
        rows.append(f"| {unit} | {quoted} | {'-' if value is None else f'{value:.3g}'} |")
    return [
        "## Cost of the training",
        "",
        "| | quoted before | measured |",
        "| --- | --- | --- |",
        *rows,
        "",
        f"Energy: {meter['energy_source']}. "
        + (
            quote["price_source"][:1].upper() + quote["price_source"][1:] + "."
            if quote
            else "Not quoted."
        ),
        "",
    ]


def _format_identity(checkpoint: Checkpoint) -> list[str]:
    """Fingerprint of the model, and how its features have changed since the libraries that it was trained with."""
    fingerprint, change = (
        checkpoint.entry.get("fingerprint"),
        checkpoint.task.feature_change,
    )
    lines = [f"- Fingerprint of backbone and preprocessing: {fingerprint}"] if fingerprint else []
    if change is not None:
        lines.append(
            f"- Features under the libraries of the export differ from those of the training by {change:.2%}"
        )
    return lines


def _format_precisions(
    parity: Parity, precisions: Mapping[str, Mapping[str, Any]], num_bytes: int
) -> list[str]:
    """The graph of each precision beside the others."""
    if not precisions:
        return []
    first = next(iter(precisions.values()))
    rows = [
        f"| {name} | {row['num_bytes'] / 1e6:.1f} | {row['onnx_ms']:.1f} | {row['after']:.4f} | {row['drop']:.2f} | "
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
        f"| fp32 | {num_bytes / 1e6:.1f} | {parity.onnx_ms:.1f} | {first['before']:.4f} | 0 | "
        f"{parity.max_difference:.1e} | {parity.num_changed} |",
        *rows,
    ]


def _format_results(results: Mapping[str, Any], metrics: Mapping[str, str]) -> list[str]:
    rows = []
    for split, values in results.items():
        for name, count in metrics.items():
            v = values.get(name)
            number = values[count] if v else 0
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
