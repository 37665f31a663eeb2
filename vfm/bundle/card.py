"""`card.md`: what a bundle is, where it comes from and how well it does, from the results at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfm_runtime.contract import Contract

from vfm.bundle.parity import Parity
from vfm.models.licenses import terms

_METRICS = ("accuracy", "mAP", "macro_f1", "top5_accuracy", "auroc", "AP", "AP50")


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
        "## Results",
        "",
        *(_results(results) or ["None were found beside the checkpoint; `vfm test` writes them."]),
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


def _results(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for split, values in results.items():
        for name in _METRICS:
            v = values.get(name)
            if isinstance(v, float):
                rows.append(f"| {split} | {name} | {v:.4f} | | {values['num_samples']} |")
            elif v is not None and v["low"] is not None:
                rows.append(
                    f"| {split} | {name} | {v['value']:.4f} | {v['low']:.4f} to {v['high']:.4f} "
                    f"| {values['num_samples']} |"
                )
    if not rows:
        return []
    return [
        "| split | metric | value | 95 % interval | images |",
        "| --- | --- | ---: | --- | ---: |",
        *rows,
    ]
