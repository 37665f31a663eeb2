"""Model card (`card.md`): what a bundle is, where it comes from and how well it does, from the results at hand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import yaml
from vfm_runtime.bundle.contract import Contract, HeadContract

from vfm.bundle.lineage import DATA, HUB_LICENSES, WEIGHTS, describe_uses, list_metrics
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
    licenses: Mapping[str, str | None] = MappingProxyType({}),
) -> str:
    """Return the card as Markdown, with the fields in front by which the Hugging Face hub sorts models.

    Args:
        contract: Contract of the bundle that is described.
        parity: Comparison of the bundle with the trained model.
        checkpoints: Where each head comes from, by its name; that of a single one is empty.
        calibrations: Calibrations by the names of the heads that have one.
        precisions: What was measured of each graph of fewer bits.
        num_bytes: Size of the graph of float32 with its weights.
        licenses: Licence of each part of the model, as `list_licenses` returns them.
    """
    title = f"{len(contract.labels)} {'labels' if contract.heads is None else 'heads'}"
    license = licenses.get(WEIGHTS)
    duties = find_terms(license).duties
    stated = (license or "not stated") + (f"; {duties}" if duties else "")
    lines = [
        *_format_front_matter(contract, checkpoints, licenses),
        f"# {contract.backbone}, {title}",
        "",
        f"- Licence of the pretrained weights: {stated if WEIGHTS in licenses else 'none used (random start)'}",
        f"- Licence of the training images: {licenses.get(DATA, 'not declared')}",
        *(f"- **{line}**" for line in describe_uses(licenses)),
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


def _format_front_matter(
    contract: Contract, checkpoints: Mapping[str, Checkpoint], licenses: Mapping[str, str | None]
) -> list[str]:
    """Fields of huggingface.co/docs/hub/model-cards; a licence that the hub has no name for is `other`."""
    task = next(iter(checkpoints.values())).task
    tag = task.pipeline_tag
    license = licenses.get(WEIGHTS)
    fields: dict[str, Any] = {
        "library_name": "vfm",
        "pipeline_tag": tag,
        "tags": ["vfm", "onnx", contract.task],
    }
    if license is not None:
        is_named = license.lower() in HUB_LICENSES
        fields |= {"license": license.lower()} if is_named else {"license": "other"}
        fields |= {} if is_named else {"license_name": license}
    report = next(iter(checkpoints.values())).entry.get("weights") or {}
    if report.get("fetched"):  # by the hub's name of the model
        fields["base_model"] = report["source"].removeprefix("timm:")
    metrics = [
        {
            "type": metric.name,
            "value": round(metric.value, 4),
            "name": f"{name} {metric.split}".strip(),
        }
        for name, checkpoint in checkpoints.items()
        for metric in list_metrics(checkpoint)
    ]
    if metrics:
        dataset = {"name": "images of the user", "type": "private"}
        results = [{"task": {"type": tag}, "dataset": dataset, "metrics": metrics}]
        fields["model-index"] = [{"name": contract.backbone, "results": results}]
    return ["---", yaml.safe_dump(fields, sort_keys=False).rstrip(), "---", ""]


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
        *_format_results(checkpoint),
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


def _format_results(checkpoint: Checkpoint) -> list[str]:
    rows = [
        f"| {one.split} | {one.name} | {one.value:.4f} | "
        f"{'' if one.interval is None else '{:.4f} to {:.4f} '.format(*one.interval)}| {one.num_samples} |"
        for one in list_metrics(checkpoint)
    ]
    if not rows:
        return ["None were found beside the checkpoint; `vfm test` writes them."]
    return [
        "| split | metric | value | 95 % interval | images or videos |",
        "| --- | --- | ---: | --- | ---: |",
        *rows,
    ]
